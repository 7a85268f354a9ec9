"""The hash of a cell: what changes it, and what does not."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from plan_factory import ROOT, write_plan

from vet_extensions.ablation.configuration import resolve
from vet_extensions.ablation.identity import SOURCES, cell_hash, code_hash
from vet_extensions.ablation.plan import read_plan
from vet_extensions.evaluation.suite_config import SuiteConfig


@pytest.fixture
def config(tmp_path):
    plan = read_plan(write_plan(tmp_path, options={"student.pretrained_weights": "{weights}"}))
    return resolve(plan, plan.baseline)


def hashed(config, *, processes=1, suite=None, data="d", code="c", weights="none"):
    values = {"data": "anywhere", "weights": str(weights)}
    return cell_hash(config, processes=processes, suite=suite or SuiteConfig(), data=data, code=code, values=values)


def changed(config, key, value):
    other = config.copy()
    OmegaConf.update(other, key, value)
    return other


def test_everything_that_decides_the_numbers_changes_the_hash(config):
    hashes = [
        hashed(config),
        hashed(changed(config, "optim.base_lr", 0.1)),
        hashed(changed(config, "train.seed", 5)),
        hashed(config, processes=2),
        hashed(config, suite=SuiteConfig(tokens="cls+mean_patch")),
        hashed(config, data="e"),
        hashed(config, code="d"),
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    ("key", "value"), [("train.num_workers", 3), ("train.output_dir", "elsewhere"), ("train.checkpoints_to_keep", 9)]
)
def test_what_decides_no_number_leaves_the_hash(config, key, value):
    assert hashed(changed(config, key, value)) == hashed(config)


def test_weights_count_by_their_bytes_and_not_by_their_place(config, tmp_path):
    here, there, other = (tmp_path / name for name in ("a.pth", "b.pth", "c.pth"))
    here.write_bytes(b"weights")
    there.write_bytes(b"weights")
    other.write_bytes(b"others")
    assert hashed(config, weights=here) == hashed(config, weights=there) != hashed(config, weights=other)


def test_the_code_of_a_plugin_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    plugin = tmp_path / "some_users_plugin.py"
    plugin.write_text("def register(): ...\n")
    before = code_hash(["some_users_plugin"])
    plugin.write_text("def register(): 1\n")
    assert code_hash(["some_users_plugin"]) != before != code_hash([])


@pytest.mark.slow
def test_training_and_evaluation_load_nothing_that_is_not_hashed():
    program = """
import sys
import dinov2.train.train, vet_extensions.evaluation.suite
from dinov2.utils.plugins import load_plugins
load_plugins(["vet_extensions"])
for name, module in sys.modules.items():
    if name.partition(".")[0] in ("dinov2", "vet_extensions") and getattr(module, "__file__", None):
        print(module.__file__)
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    files = [Path(line).relative_to(ROOT) for line in loaded.stdout.split()]
    hashed_places = [Path(source) for source in SOURCES]
    outside = [str(file) for file in files if not any(place in (file, *file.parents) for place in hashed_places)]
    assert len(files) > 50
    assert outside == ["dinov2/__init__.py"]
