"""Checkpoint folders: whole, hashed, and the one before when the newest is damaged."""

import json
import logging

import pytest
import torch

from dinov2.train.checkpoint import Checkpointer


def save(checkpointer: Checkpointer, *iterations: int) -> None:
    for i in iterations:
        checkpointer.save({"model": {"w": torch.full((1000,), float(i))}, "scaler": {}}, iteration=i)


def test_newest_checkpoint_is_loaded_with_its_iteration(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    assert checkpointer.load_newest() is None
    save(checkpointer, 9, 19)
    state = checkpointer.load_newest()
    assert state is not None
    assert state["iteration"] == 19
    assert torch.equal(state["model"]["w"], torch.full((1000,), 19.0))


def test_only_the_newest_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", keep=2)
    save(checkpointer, 1, 2, 3, 4)
    assert checkpointer.iterations() == [3, 4]


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, lambda p: p.unlink()], ids=["bit", "truncated", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog, damage):
    checkpointer = Checkpointer(tmp_path / "c")
    save(checkpointer, 9, 19)
    damage(tmp_path / "c" / "0000019" / "state.pth")
    with caplog.at_level(logging.WARNING, logger="dinov2"):
        logging.getLogger("dinov2").propagate = True
        state = checkpointer.load_newest()
    assert state is not None
    assert state["iteration"] == 9
    assert "0000019" in caplog.text


def test_a_save_that_was_cut_off_is_not_a_checkpoint(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    save(checkpointer, 9)
    partial = tmp_path / "c" / ".0000019.partial"
    partial.mkdir()
    (partial / "state.pth").write_bytes(b"half")
    assert checkpointer.iterations() == [9]
    save(checkpointer, 19)
    assert checkpointer.iterations() == [9, 19]


def test_meta_tells_what_the_checkpoint_is(tmp_path):
    path = Checkpointer(tmp_path).save({"model": {}}, iteration=4, facts={"torch": "x"})
    meta = json.loads((path / "meta.json").read_text())
    assert (meta["iteration"], meta["torch"], len(meta["sha256"])) == (4, "x", 64)
