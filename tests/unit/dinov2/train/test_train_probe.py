"""The probe of a running training: RankMe and k-NN of known features, and that it leaves no trace, at any number of processes."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from dinov2.configs import dinov2_default_config
from dinov2.train.probe import HeldOutProbe, build_probe, rankme
from dinov2.utils.errors import UserError

TINTS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 60, 50)}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three classes told apart by their colour: 12 training images, 7 for validation, 2 without classes."""
    root, rng = tmp_path_factory.mktemp("tints"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 7), ("flat", 2)):
        for i in range(count):
            tint = sorted(TINTS)[i % 3]
            folder = root / split / (tint if split != "flat" else "")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.array(TINTS[tint]) + rng.integers(-30, 30, (20, 24, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


class MeanColour(nn.Module):
    """[B, 3, H, W] -> [B, 3]; in training mode it drops at random, and it notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.9)
        self.frozen = nn.Dropout(0.9).eval()
        self.batches: list[torch.Size] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.shape)
        return self.frozen(self.dropout(x.mean((2, 3)) * self.weight))


def make_probe(images: Path, **overrides) -> HeldOutProbe:
    options = {"k": 3, "batch_size": 4, "num_workers": 0, "image_size": 16}
    sets = {f"{split}_dataset_str": f"ImageFolder:root={images}:split={split}" for split in ("train", "val")}
    return HeldOutProbe(**(sets | options | overrides))


@pytest.mark.parametrize("n", [4, 9])
def test_rankme_of_directions_of_equal_weight_is_their_number(n):
    assert rankme(torch.eye(n).repeat(3, 1)) == pytest.approx(n, rel=1e-4)


def test_rankme_of_equal_rows_is_one():
    assert rankme(torch.ones(20, 8)) == pytest.approx(1.0, abs=1e-3)


def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values():
    p = torch.tensor([0.5, 0.3, 0.2])
    expected = math.exp(-sum(x * math.log(x) for x in p.tolist()))
    assert rankme(torch.diag(7 * p)) == pytest.approx(expected, rel=1e-4)


def test_rankme_of_zeros_is_zero_and_of_a_nan_nan():
    assert rankme(torch.zeros(4, 3)) == 0.0
    assert math.isnan(rankme(torch.full((4, 3), torch.nan)))


def test_colours_that_are_apart_are_told_apart(images):
    values = make_probe(images)(MeanColour())
    assert values.keys() == {"rankme", "knn_top1"}
    assert values["knn_top1"] == 100.0
    assert 1.0 < values["rankme"] <= 3.0


def test_a_backbone_that_answers_alike_has_rank_one_and_guesses(images):
    class Blind(MeanColour):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3) * self.weight

    values = make_probe(images)(Blind())
    assert values["rankme"] == pytest.approx(1.0, abs=1e-3)
    assert values["knn_top1"] < 50


def test_with_labels_on_one_side_only_rankme_is_measured(images):
    assert make_probe(images, train_dataset_str="")(MeanColour()).keys() == {"rankme"}
    flat = f"ImageFolder:root={images}:split=flat"
    assert make_probe(images, val_dataset_str=flat)(MeanColour()).keys() == {"rankme"}


def test_other_classes_in_training_and_validation_are_refused(images):
    with pytest.raises(UserError, match="needs two classes"):
        make_probe(images, train_dataset_str=f"ImageFolder:root={images}:split=flat")


def test_of_a_large_data_set_an_even_part_is_looked_at(images):
    probe, backbone = make_probe(images, max_images=3), MeanColour()
    assert probe(backbone)["knn_top1"] == 100.0  # one image of each class on both sides
    assert probe.n_val_images == 3
    assert sum(shape[0] for shape in backbone.batches) == 6


def test_images_reach_the_backbone_at_the_size_of_its_global_crops(images):
    backbone = MeanColour()
    make_probe(images, image_size=24)(backbone)
    assert {shape[1:] for shape in backbone.batches} == {(3, 24, 24)}


def test_a_probe_changes_no_random_state_and_no_mode(images):
    backbone = MeanColour().train()
    backbone.frozen.eval()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not change
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    class Restless(MeanColour):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.rand(1) * random.random() * np.random.rand()  # noqa: NPY002
            return super().forward(x) + 0 * noise

    backbone.__class__ = Restless
    make_probe(images)(backbone)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002
    assert (backbone.training, backbone.dropout.training, backbone.frozen.training) == (True, True, False)
    assert backbone.weight.grad is None


def test_the_backbone_is_measured_without_its_dropout(images):
    probe, backbone = make_probe(images), MeanColour().train()
    assert probe(backbone) == probe(backbone.eval())


def test_a_mode_is_put_back_when_the_backbone_fails(images):
    class Broken(MeanColour):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no memory")

    backbone = Broken().train()
    with pytest.raises(RuntimeError, match="no memory"):
        make_probe(images)(backbone)
    assert backbone.training


def config(images: Path, *overrides: str):
    sets = [f"evaluation.probe_{s}_dataset=ImageFolder:root={images}:split={s}" for s in ("train", "val")]
    small = ["train.device=cpu", "train.num_workers=0", "train.batch_size_per_gpu=4", "crops.global_crops_size=16"]
    return OmegaConf.merge(dinov2_default_config, OmegaConf.from_dotlist([*sets, *small, *overrides]))


def test_a_configuration_without_a_period_has_no_probe(images):
    assert build_probe(config(images)) is None


def test_the_probe_of_a_configuration_measures_what_it_names(images):
    probe = build_probe(config(images, "evaluation.probe_period_iterations=5", "evaluation.probe_k=3"))
    assert probe is not None
    assert probe(MeanColour())["knn_top1"] == 100.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.probe_val_dataset=''", "probe_val_dataset is empty"),
        ("evaluation.probe_k=0", "1 or more neighbours"),
    ],
)
def test_a_probe_that_cannot_be_is_refused_with_the_key(images, override, words):
    with pytest.raises(UserError, match=words):
        build_probe(config(images, "evaluation.probe_period_iterations=5", override))


SHARDED = """
import json, sys, torch
from torch.distributed.fsdp import fully_shard
from dinov2 import distributed
from dinov2.models.vision_transformer import vit_micro
from dinov2.train.probe import HeldOutProbe

root, out = sys.argv[1:]
with distributed.session():
    torch.manual_seed(0)
    backbone = vit_micro(patch_size=8, img_size=16, init_values=1.0)
    if distributed.get_global_size() > 1:
        for block in backbone.blocks:
            fully_shard(block, reshard_after_forward=True)
        fully_shard(backbone, reshard_after_forward=True)
    sets = {f"{s}_dataset_str": f"ImageFolder:root={root}:split={s}" for s in ("train", "val")}
    # One batch more for the first process than for the second, were they not made equal.
    probe = HeldOutProbe(**sets, k=3, batch_size=3, num_workers=0, image_size=16)
    values = probe(backbone)
    backbone(torch.zeros(1, 3, 16, 16), is_training=True)["x_norm_clstoken"].sum().backward()  # it can still be trained
    gathered = distributed.all_gather_objects(values)
    if distributed.is_main_process():
        assert all(v == values for v in gathered), gathered
        open(out, "w").write(json.dumps(values))
"""


@pytest.mark.slow
def test_two_processes_with_a_sharded_backbone_measure_what_one_process_measures(images, tmp_path):
    """7 images in batches of 3 are three batches for two processes, and a process that did one batch less would wait for ever."""
    script, results = tmp_path / "sharded.py", []
    script.write_text(SHARDED)
    for n_processes in (1, 2):
        out = tmp_path / f"{n_processes}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
        done = subprocess.run([*launch, script, images, out], capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(out.read_text()))
    assert results[1] == pytest.approx(results[0], rel=1e-4)
