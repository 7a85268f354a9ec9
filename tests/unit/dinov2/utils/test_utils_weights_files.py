"""Reading weights: every container that holds only data, and a sentence for everything else."""

import argparse
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed._shard.sharded_tensor import ShardedTensor

from dinov2.utils.errors import UserError
from dinov2.utils.utils import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}


def save(content, folder, name="weights.pth"):
    torch.save(content, folder / name)
    return folder / name


def assert_is_state(content):
    assert content.keys() == STATE.keys()
    assert all(torch.equal(content[name], value) for name, value in STATE.items())


def make_training_content():
    """As an official training file: the schedules hand numbers of numpy to the optimizer."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(0.25)
    return {"model": dict(STATE), "optimizer": optimizer.state_dict(), "iteration": 41, "seen": np.arange(3)}


class Refers:
    """Pickles as a call of the given class, so that reading the file would make one."""

    def __init__(self, kind, *arguments):
        self.kind, self.arguments = kind, arguments

    def __reduce__(self):
        return self.kind, self.arguments


def test_a_training_file_with_optimizer_state_and_numbers_of_numpy_is_read(tmp_path):
    content = read_checkpoint(save(make_training_content(), tmp_path))
    assert_is_state(content["model"])
    assert content["iteration"] == 41
    assert content["optimizer"]["param_groups"][0]["lr"] == 0.25
    assert content["seen"].tolist() == [0, 1, 2]


def test_a_training_file_written_with_numpy_1_is_read(tmp_path):
    newer, older = save(make_training_content(), tmp_path), tmp_path / "older.pth"
    with zipfile.ZipFile(newer) as source, zipfile.ZipFile(older, "w") as target:
        for entry in source.namelist():
            old_names = source.read(entry).replace(b"cnumpy._core.", b"cnumpy.core.")
            target.writestr(entry, old_names)
    assert b"cnumpy.core.multiarray" in older.read_bytes()
    assert read_checkpoint(older)["optimizer"]["param_groups"][0]["lr"] == 0.25


@pytest.mark.parametrize("name", ["model.safetensors", "renamed.pth"])
def test_safetensors_are_known_by_their_content(name, tmp_path):
    save_file(STATE, tmp_path / name)
    assert_is_state(read_checkpoint(tmp_path / name))


def test_a_torch_file_is_read_whatever_its_name(tmp_path):
    assert_is_state(read_checkpoint(save(STATE, tmp_path, "weights.safetensors")))


def test_a_safetensors_file_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    for length in (60, 5, path.stat().st_size - 4):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(UserError, match="cut off"):
            read_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_one_file_is_read(name, tmp_path):
    save_file(STATE, tmp_path / name) if name.endswith("safetensors") else save(STATE, tmp_path, name)
    assert_is_state(read_checkpoint(tmp_path))


def make_shards(folder, *, weight_map=None):
    for i, (name, value) in enumerate(STATE.items()):
        save_file({name: value}, folder / f"model-{i}.safetensors")
    weight_map = weight_map or {name: f"model-{i}.safetensors" for i, name in enumerate(STATE)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_folder_with_several_files_is_read_through_its_index(tmp_path):
    make_shards(tmp_path)
    assert_is_state(read_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a.weight": "model-0.safetensors", "c": "model-1.safetensors"}, "the first c"),
        ({"a.weight": "../elsewhere.safetensors"}, "same folder"),
        ({"a.weight": "model-7.safetensors"}, r"model-7\.safetensors"),
    ],
)
def test_an_index_that_its_files_do_not_fulfil_is_refused(weight_map, message, tmp_path):
    make_shards(tmp_path, weight_map=weight_map)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("inside", "message"), [("eval", r"teacher_checkpoint\.pth"), ("pictures", "holds no weights")]
)
def test_a_folder_of_something_else_is_refused_with_the_cure(inside, message, tmp_path):
    (tmp_path / inside).mkdir()
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path)


def test_an_absent_file_is_named():
    with pytest.raises(UserError, match=r"absent\.pth"):
        read_checkpoint("absent.pth")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", pickle.dumps(UserError("code in a pickle"), protocol=2)]
)
def test_unreadable_or_unsafe_files_are_refused(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no readable weights file"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_damaged_file_gives_no_other_error_whatever_bit_is_wrong(is_zip, tmp_path):
    torch.save({"model": STATE}, tmp_path / "whole.pth", _use_new_zipfile_serialization=is_zip)
    whole, damaged = (tmp_path / "whole.pth").read_bytes(), tmp_path / "damaged.pth"
    random, n_refused = np.random.default_rng(0), 0
    for length in (*([len(whole)] * 80), *random.integers(len(whole), size=40)):
        content = bytearray(whole[:length])
        if length:
            content[random.integers(length)] ^= 1 << int(random.integers(8))
        damaged.write_bytes(content)
        try:
            read_checkpoint(damaged)
        except UserError:
            n_refused += 1
    assert n_refused > 40


def test_a_file_with_objects_names_their_type_and_the_cure(tmp_path):
    path = save({"model": STATE, "args": argparse.Namespace(epochs=3)}, tmp_path)
    with pytest.raises(UserError, match=r"type argparse\.Namespace.*weights_only=False"):
        read_checkpoint(path)


def test_one_processs_slice_is_recognised_by_its_sharded_tensors(tmp_path):
    path = save({"model": {"student.backbone._flat_param": Refers(ShardedTensor)}}, tmp_path)
    with pytest.raises(UserError, match=r"one process's slice.*teacher_checkpoint\.pth"):
        read_checkpoint(path)


def test_a_file_that_holds_no_dictionary_is_refused(tmp_path):
    with pytest.raises(UserError, match="list"):
        read_checkpoint(save([torch.ones(1)], tmp_path))
