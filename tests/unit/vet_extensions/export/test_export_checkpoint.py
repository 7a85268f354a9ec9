"""A run's teacher becomes a hub file: the right tensors, the right grid, nothing else, and only once it was verified."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dinov2.models import vision_transformer as vits
from vet_extensions.errors import UserError
from vet_extensions.export import parity
from vet_extensions.export.checkpoint import export_hub, load_hub_file

IMG, PATCH = 32, 8
STUDENT = {"arch": "vit_micro", "patch_size": PATCH, "interpolate_antialias": False, "interpolate_offset": 0.1}


def teacher_backbone(*, arch: str = "vit_micro", img_size: int = IMG, **changes: Any) -> vits.DinoVisionTransformer:
    """A backbone whose every tensor differs from every other and from its start."""
    settings = {"patch_size": PATCH, "img_size": img_size, "init_values": 1e-5, "block_chunks": 0} | changes
    model = vars(vits)[arch](**settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def write_run(root: Path, model: vits.DinoVisionTransformer, *, iteration: int = 9, config: dict | None = None) -> Path:
    """A run folder as dinov2.train leaves it; returns the teacher checkpoint."""
    state = OrderedDict({f"backbone.{name}": tensor for name, tensor in model.state_dict().items()})
    state["dino_head.last_layer.weight_v"] = torch.zeros(4, 2)
    checkpoint = root / "eval" / f"training_{iteration}" / "teacher_checkpoint.pth"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"teacher": state}, checkpoint)
    content = config or {"student": STUDENT, "augmentation": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (root / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return checkpoint


def export(source: Path, out: Path, **options: Any):
    return export_hub(source, out, fresh_process=False, **options)


def test_the_file_holds_the_backbone_alone_in_official_order(tmp_path):
    model = teacher_backbone()
    write_run(tmp_path / "run", model)
    export(tmp_path / "run", tmp_path / "out" / "teacher.pth")
    state = torch.load(tmp_path / "out" / "teacher.pth", weights_only=True)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_chunked_names_become_flat(tmp_path, chunks):
    model = teacher_backbone(block_chunks=chunks)
    write_run(tmp_path / "run", model)
    export(tmp_path / "run", tmp_path / "teacher.pth")
    flat = teacher_backbone()
    assert list(torch.load(tmp_path / "teacher.pth", weights_only=True)) == list(flat.state_dict())


def test_tensors_are_written_as_contiguous_float32_without_spare_storage(tmp_path):
    model = teacher_backbone().half()
    checkpoint = write_run(tmp_path / "run", model)
    export(checkpoint, tmp_path / "teacher.pth")
    for tensor in torch.load(tmp_path / "teacher.pth", weights_only=True).values():
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()


def test_the_newest_checkpoint_of_a_run_is_taken_by_number_not_by_name(tmp_path):
    newest = write_run(tmp_path / "run", teacher_backbone(), iteration=1000)
    write_run(tmp_path / "run", teacher_backbone(), iteration=999)
    report = export(tmp_path / "run", tmp_path / "teacher.pth")
    assert report.source_sha256 == parity.file_sha256(newest)


def test_a_loaded_file_gives_the_teachers_tokens_exactly(tmp_path):
    model = teacher_backbone(num_register_tokens=4)
    write_run(tmp_path / "run", model)
    report = export(tmp_path / "run", tmp_path / "teacher.pth")
    images = torch.randn(2, 3, IMG, IMG)
    with torch.inference_mode():
        ours = load_hub_file(tmp_path / "teacher.pth").forward_features(images)
        theirs = model.forward_features(images)
    assert torch.equal(ours["x_norm_patchtokens"], theirs["x_norm_patchtokens"])
    assert (report.parity.max_abs_cls, report.parity.max_abs_patch) == (0.0, 0.0)


@pytest.mark.parametrize("n_registers", [0, 4])
def test_an_enlarged_grid_gives_the_teachers_tokens_at_its_training_size(tmp_path, n_registers):
    write_run(tmp_path / "run", teacher_backbone(num_register_tokens=n_registers))
    report = export(tmp_path / "run", tmp_path / "teacher.pth", img_size=104)
    assert load_hub_file(tmp_path / "teacher.pth").pos_embed.shape[1] == 1 + 13 * 13
    assert report.parity.passed
    assert report.parity.img_size == IMG
    assert report.parity.max_abs_patch < 1e-4
    assert report.parity.other_size is not None
    assert report.parity.other_size.img_size == 104


def test_a_reduced_grid_is_the_one_the_teacher_uses_at_that_size(tmp_path):
    write_run(tmp_path / "run", teacher_backbone(img_size=64))
    report = export(tmp_path / "run", tmp_path / "teacher.pth", img_size=32)
    assert report.parity.img_size == 32
    assert report.parity.max_abs_patch < 1e-5


def test_the_sidecar_says_how_to_build_and_feed_the_model_and_names_no_file(tmp_path):
    checkpoint = write_run(tmp_path / "private_name", teacher_backbone())
    export(tmp_path / "private_name", tmp_path / "teacher.pth", img_size=64)
    text = (tmp_path / "teacher.json").read_text(encoding="utf-8")
    sidecar = json.loads(text)
    assert sidecar["architecture"]["arch"] == "vit_micro"
    assert sidecar["architecture"]["img_size"] == 64
    assert sidecar["trained_img_size"] == IMG
    assert sidecar["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert sidecar["preprocessing"]["grey_to_rgb"] == "the grey channel three times"
    assert sidecar["source_sha256"] == parity.file_sha256(checkpoint)
    assert "private_name" not in text
    assert str(tmp_path) not in text


def test_only_the_verified_pair_of_files_remains(tmp_path):
    write_run(tmp_path / "run", teacher_backbone())
    export(tmp_path / "run", tmp_path / "out" / "teacher.pth")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["teacher.json", "teacher.pth"]


def test_the_same_checkpoint_may_be_exported_again_and_another_may_not_replace_it(tmp_path):
    write_run(tmp_path / "run", teacher_backbone())
    write_run(tmp_path / "other", teacher_backbone(init_values=1.0))
    export(tmp_path / "run", tmp_path / "teacher.pth")
    export(tmp_path / "run", tmp_path / "teacher.pth", img_size=64)
    with pytest.raises(UserError, match="came from another checkpoint"):
        export(tmp_path / "other", tmp_path / "teacher.pth")


def test_a_network_without_layerscale_of_a_size_the_hub_lacks_is_exported_for_its_sidecar(tmp_path):
    write_run(tmp_path / "run", teacher_backbone(init_values=None))
    report = export(tmp_path / "run", tmp_path / "teacher.pth")
    assert report.hub_constructor is None
    assert not report.architecture.has_layerscale
    load_hub_file(tmp_path / "teacher.pth")


def test_a_network_that_the_hub_would_refuse_is_exported_only_on_request(tmp_path, monkeypatch):
    monkeypatch.setitem(parity._HUB_STEMS, "vit_micro", "vitm")
    monkeypatch.setattr(parity, "_HUB_PATCH_SIZE", PATCH)
    write_run(tmp_path / "run", teacher_backbone(init_values=None))
    with pytest.raises(UserError, match=r"could not load this backbone: it wants LayerScale gains.*require_hub=False"):
        export(tmp_path / "run", tmp_path / "teacher.pth")
    assert export(tmp_path / "run", tmp_path / "teacher.pth", require_hub=False).hub_constructor is None
    load_hub_file(tmp_path / "teacher.pth")


def test_a_fresh_process_loads_the_file_too_or_it_gets_no_name(tmp_path, monkeypatch):
    write_run(tmp_path / "run", teacher_backbone())
    assert export_hub(tmp_path / "run", tmp_path / "teacher.pth", fresh_process=True).parity.passed
    sha256 = parity.file_sha256
    monkeypatch.setattr("vet_extensions.export.checkpoint.file_sha256", lambda path: sha256(path)[::-1])
    with pytest.raises(parity.ParityError, match=r"fresh process: .*SHA-256 differs"):
        export_hub(tmp_path / "run", tmp_path / "out" / "teacher.pth", fresh_process=True)
    assert not (tmp_path / "out" / "teacher.pth").exists()


def test_a_lone_checkpoint_needs_the_name_of_its_architecture(tmp_path):
    checkpoint = write_run(tmp_path / "run", teacher_backbone()).rename(tmp_path / "teacher_checkpoint.pth")
    with pytest.raises(UserError, match="Give the run folder, or the name"):
        export(checkpoint, tmp_path / "teacher.pth")
    report = export(checkpoint, tmp_path / "teacher.pth", arch="vit_micro")
    assert report.architecture.interpolate_offset == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "vit_tiny"}, "config.yaml says 'vit_micro'"),
        ({"img_size": 60}, "Use 56 or 64"),
        ({"img_size": 4}, "Use 8 or 16"),
    ],
)
def test_an_option_that_cannot_be_met_is_answered_with_the_cure(tmp_path, options, message):
    write_run(tmp_path / "run", teacher_backbone())
    with pytest.raises(UserError, match=message):
        export(tmp_path / "run", tmp_path / "teacher.pth", **options)
    assert not (tmp_path / "teacher.pth").exists()


def test_an_architecture_that_does_not_fit_the_tensors_is_refused(tmp_path):
    write_run(tmp_path / "run", teacher_backbone(), config={"student": {**STUDENT, "arch": "vit_tiny"}})
    with pytest.raises(UserError, match="do not fit the architecture"):
        export(tmp_path / "run", tmp_path / "teacher.pth")


def test_a_diverged_checkpoint_is_refused(tmp_path):
    model = teacher_backbone()
    model.norm.weight.data[3] = torch.nan
    write_run(tmp_path / "run", model)
    with pytest.raises(UserError, match=r"not finite, the first norm\.weight"):
        export(tmp_path / "run", tmp_path / "teacher.pth")


def test_a_cut_checkpoint_and_a_foreign_file_are_refused(tmp_path):
    checkpoint = write_run(tmp_path / "run", teacher_backbone())
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="no readable weights file"):
        export(tmp_path / "run", tmp_path / "teacher.pth")
    torch.save({"model": {}}, checkpoint)
    with pytest.raises(UserError, match="holds no teacher backbone"):
        export(tmp_path / "run", tmp_path / "teacher.pth")


def test_a_folder_that_is_no_run_is_named_without_its_path(tmp_path):
    with pytest.raises(UserError, match="holds no eval/training_") as error:
        export(tmp_path, tmp_path / "teacher.pth")
    assert str(tmp_path) not in str(error.value)


def test_a_name_that_the_sidecar_would_overwrite_is_refused(tmp_path):
    write_run(tmp_path / "run", teacher_backbone())
    with pytest.raises(UserError, match=r"end in \.pth"):
        export(tmp_path / "run", tmp_path / "teacher.json")
