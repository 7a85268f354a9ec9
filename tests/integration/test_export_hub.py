"""A ViT-S/14 run's teacher -> a file that the hub's own constructor loads with strict names at 518 pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dinov2.hub import backbones
from dinov2.models import vision_transformer as vits
from vet_extensions.export.checkpoint import export_hub

STUDENT = {"arch": "vit_small", "patch_size": 14, "interpolate_antialias": False, "interpolate_offset": 0.1}


def write_run(root: Path, **changes: Any) -> vits.DinoVisionTransformer:
    """A ViT-S/14 run at 112 px with chunked blocks, as dinov2.train leaves it; returns its teacher."""
    torch.manual_seed(0)
    settings = {"patch_size": 14, "img_size": 112, "init_values": 1e-5, "block_chunks": 4} | changes
    model = vits.vit_small(**settings).eval()
    with torch.no_grad():  # as large as trained positions and gains are, so that a mistake in either shows
        model.pos_embed.mul_(10.0)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    folder = root / "eval" / "training_99"
    folder.mkdir(parents=True)
    torch.save(
        {"teacher": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, folder / "teacher_checkpoint.pth"
    )
    (root / "config.yaml").write_text(yaml.safe_dump({"student": STUDENT}), encoding="utf-8")
    return model


@pytest.mark.parametrize("n_registers", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_vits14_run_loads_strictly_at_518_px_and_keeps_its_outputs_at_its_training_size(tmp_path, n_registers):
    teacher = write_run(tmp_path / "run", num_register_tokens=n_registers)
    report = export_hub(tmp_path / "run", tmp_path / "vits14.pth", img_size=518, fresh_process=False)
    assert report.hub_constructor == ("dinov2_vits14_reg" if n_registers else "dinov2_vits14")
    assert report.n_parameters == (22_058_112 if n_registers else 22_056_576)
    assert report.n_tensors == (176 if n_registers else 175)
    assert report.parity.passed

    model = getattr(backbones, report.hub_constructor)(pretrained=False).eval()
    model.load_state_dict(torch.load(tmp_path / "vits14.pth", weights_only=True), strict=True)
    images = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        ours, theirs = model.forward_features(images), teacher.forward_features(images)
    for name in ("x_norm_clstoken", "x_norm_patchtokens"):
        assert (ours[name] - theirs[name]).abs().max() < 1e-4
