"""The demo, small enough for a test but with every stage real: DICOM archive to report."""

import json
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from dinov2.models import build_model_from_cfg
from vet_extensions.demo import plan, run, run_demo
from vet_extensions.export.checkpoint import load_hub_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    small = replace(plan.QUICK, n_studies=120, epoch_length=2, n_curve_points=2, n_resamples=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "QUICK", small)
        report = run_demo(out, quick=True, n_workers=2)
        before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*/state.pth")}
        run_demo(out, quick=True, n_workers=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished run was trained again"
    return out, report


def test_the_report_is_one_file_with_every_section(demo):
    _, report = demo
    page = report.read_text()
    for heading in (
        "Results",
        "Training",
        "Crops and routing",
        "Where the CLS token looks",
        "Principal components",
        "Export",
    ):
        assert heading in page
    assert 'src="http' not in page
    assert "vet_dino" in page


def test_both_arms_took_the_same_steps_and_are_measured_beside_their_controls(demo):
    out, _ = demo
    rows = [json.loads(line) for line in (out / "evaluation" / "results.jsonl").read_text().splitlines()]
    assert {"same_image", "vet_dino", "random_init", "raw_pixels"} <= {row["arm"] for row in rows}
    iterations = {
        row["iteration"] for row in rows if row["arm"] in ("same_image", "vet_dino") and row["kind"] == "score"
    }
    assert iterations == {11}


@pytest.mark.parametrize("arm", plan.ARMS)
def test_teacher_checkpoint_loads_with_strict_keys_and_its_export_holds_the_same_weights(demo, arm):
    out, _ = demo
    folder = out / "runs" / f"{arm}_seed0"
    cfg = OmegaConf.load(folder / "config.yaml")
    teacher = torch.load(folder / "eval" / "training_11" / "teacher_checkpoint.pth", weights_only=True)["teacher"]
    backbone = {k.removeprefix("backbone."): v for k, v in teacher.items() if k.startswith("backbone.")}
    build_model_from_cfg(cfg, only_teacher=True)[0].load_state_dict(backbone, strict=True)
    exported = load_hub_file(out / "export" / f"{arm}_seed0.pth").state_dict()
    assert exported.keys() == backbone.keys()
    assert all(torch.equal(exported[name], backbone[name]) for name in backbone)
