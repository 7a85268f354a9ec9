"""Checkpoint folders: whole, hashed, readable by any process, and the one before when the newest is damaged."""

import json
import logging
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dinov2.fsdp.storage import TensorFolder
from dinov2.train.checkpoint import Checkpointer, StoredCheckpoint, TrainingState
from dinov2.utils.errors import UserError


def state(value: float) -> TrainingState:
    tensors = {"model.w": torch.full((1000,), value), "optimizer.w.step": torch.tensor(value)}
    return TrainingState(tensors=tensors, own={"rng": torch.arange(5)}, facts={"note": "a note"})


def save(checkpointer: Checkpointer, *iterations: int) -> None:
    for i in iterations:
        checkpointer.save(state(float(i)), iteration=i)
    checkpointer.wait()


def newest(checkpointer: Checkpointer) -> StoredCheckpoint:
    stored = checkpointer.find_newest()
    assert stored is not None
    return stored


@pytest.mark.parametrize("in_background", [False, True])
def test_newest_checkpoint_is_found_and_read_back(in_background, tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", in_background=in_background)
    assert checkpointer.find_newest() is None
    save(checkpointer, 9, 19)
    stored = newest(checkpointer)
    assert stored.iteration == 19
    assert sorted(stored.names()) == ["model.w", "optimizer.w.step"]
    into = {"model.w": torch.zeros(1000)}
    stored.read_tensors(into)
    assert torch.equal(into["model.w"], torch.full((1000,), 19.0))
    own = stored.read_own()
    assert own is not None
    assert torch.equal(own["rng"], torch.arange(5))


def test_only_the_newest_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", keep=2)
    save(checkpointer, 1, 2, 3, 4)
    assert checkpointer.iterations() == [3, 4]


def test_what_is_written_in_the_background_is_the_state_at_the_time_of_saving(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", in_background=True)
    moving = state(1.0)
    checkpointer.save(moving, iteration=1)
    moving.tensors["model.w"].fill_(7.0)
    checkpointer.wait()
    into = {"model.w": torch.zeros(1000)}
    newest(checkpointer).read_tensors(into)
    assert torch.equal(into["model.w"], torch.ones(1000))


def test_a_failure_in_the_background_reaches_the_training(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "c", in_background=True)

    def no_space(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(TensorFolder, "finish", no_space)
    checkpointer.save(state(1.0), iteration=1)
    with pytest.raises(UserError, match=r"0000001 could not be written: OSError: No space.*There is no checkpoint yet"):
        checkpointer.wait()
    assert checkpointer.iterations() == []


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def remove(path):
    path.unlink()


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "rank_0.pth", "meta.json"])
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(name, damage, tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path / "c")
    save(checkpointer, 1, 2)
    damage(tmp_path / "c" / "0000002" / name)
    with caplog.at_level(logging.WARNING, logger="dinov2"):
        assert newest(checkpointer).iteration == 1
    assert "checkpoint 0000002 is not usable" in caplog.text


def test_every_flipped_bit_of_the_readable_facts_is_noticed(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    save(checkpointer, 1)
    path = tmp_path / "c" / "0000001" / "meta.json"
    whole = path.read_bytes()
    before = json.loads(whole)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            same = json.loads(changed) == before  # a space that became another blank says nothing else
        except ValueError:
            same = False
        if not same:
            with pytest.raises(UserError, match="No checkpoint"):
                checkpointer.find_newest()


def test_a_save_that_was_cut_off_is_not_a_checkpoint_and_does_not_hinder_the_next(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    save(checkpointer, 1)
    partial = tmp_path / "c" / ".0000002.partial"
    partial.mkdir()
    (partial / "__0_0.distcp").write_bytes(b"half")
    assert newest(checkpointer).iteration == 1
    save(checkpointer, 2)
    assert newest(checkpointer).iteration == 2
    assert not partial.exists()


def test_meta_tells_what_the_checkpoint_is(tmp_path):
    save(Checkpointer(tmp_path / "c"), 7)
    meta = json.loads((tmp_path / "c" / "0000007" / "meta.json").read_text())
    assert (meta["iteration"], meta["format_version"], meta["world_size"], meta["note"]) == (7, 2, 1, "a note")
    assert set(meta["files"]) == {"__0_0.distcp", ".metadata", "rank_0.pth"}


def test_a_checkpoint_of_another_model_is_refused_with_names_and_shapes(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    save(checkpointer, 1)
    with pytest.raises(UserError, match=r"1 of 2 tensors are missing \(model.v\).*model.w \(1000,\) for \(999,\)"):
        newest(checkpointer).read_tensors({"model.w": torch.zeros(999), "model.v": torch.zeros(1)})


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_a_hostile_list_of_tensors_is_refused_before_it_runs(tmp_path):
    save(Checkpointer(tmp_path / "c"), 1)
    folder = tmp_path / "c" / "0000001"
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match=r"builtins\.exec"):
        TensorFolder(folder).names()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_anything_but_tensors_in_a_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "c"
    dcp.save({"model.w": torch.zeros(3), "code": {"a": 1}}, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    with pytest.raises(UserError, match="BytesStorageMetadata, which no checkpoint of ours holds"):
        TensorFolder(folder).names()


def test_damaged_checkpoints_of_later_steps_do_not_push_out_the_good_ones(tmp_path):
    save(Checkpointer(tmp_path / "c", keep=5), 1, 5, 7)
    for later in ("0000005", "0000007"):
        flip_a_bit(tmp_path / "c" / later / "__0_0.distcp")
    checkpointer = Checkpointer(tmp_path / "c", keep=1)
    assert newest(checkpointer).iteration == 1
    save(checkpointer, 3)
    assert newest(checkpointer).iteration == 3


def test_what_a_kill_left_of_another_step_goes_with_the_next_save(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    (tmp_path / "c" / ".0000002.partial").mkdir(parents=True)
    save(checkpointer, 3)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["0000003"]


def test_a_run_whose_checkpoints_are_all_damaged_is_told_which_fault_each_has(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    save(checkpointer, 1, 2)
    flip_a_bit(tmp_path / "c" / "0000001" / "rank_0.pth")
    remove(tmp_path / "c" / "0000002" / "meta.json")
    with pytest.raises(
        UserError, match=r"0000002: meta.json is missing.*0000001: the SHA-256 of rank_0.pth.*--no-resume"
    ):
        checkpointer.find_newest()
