"""Weights as transformers and timm themselves write them, where these packages are installed; otherwise skipped."""

import importlib.util

import pytest
import torch

from dinov2.models.vision_transformer import DinoVisionTransformer
from dinov2.utils.utils import load_pretrained_weights

pytestmark = pytest.mark.slow  # importing either package takes seconds

SIZE = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module", autouse=True)
def operators_of_torchvision():
    """Both packages import torchvision where it is, whose import fails beside a CPU-only torch unless it has these two."""
    declared = torch.library.Library("torchvision", "FRAGMENT")
    if importlib.util.find_spec("torchvision") and torch.version.cuda is None:
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return declared  # the declaration lasts as long as the object


def fill(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def assert_computes(path, wanted, x, *, atol=1e-6, **settings):
    """wanted: [B, 1 + R + N, D], the normed tokens of the other package."""
    registers = settings.get("num_register_tokens", 0)
    model = DinoVisionTransformer(img_size=56, patch_size=14, init_values=1e-5, block_chunks=1, **SIZE, **settings)
    load_pretrained_weights(model.eval(), path, "teacher")
    with torch.no_grad():
        tokens = model.forward_features(x)
    parts = [tokens["x_norm_clstoken"][:, None], tokens["x_norm_regtokens"], tokens["x_norm_patchtokens"]]
    assert parts[1].shape[1] == registers
    torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("n_registers", [0, 4])
@pytest.mark.parametrize("shard_size", ["1GB", "50KB"])
def test_a_folder_of_transformers_computes_the_same_here(is_gated, n_registers, shard_size, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind, more = ("Dinov2WithRegisters", {"num_register_tokens": n_registers}) if n_registers else ("Dinov2", {})
    config = getattr(transformers, f"{kind}Config")(
        **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 56, "patch_size": 14},
        use_swiglu_ffn=is_gated,
        **more,
    )
    source = fill(getattr(transformers, f"{kind}Model")(config))
    source.save_pretrained(tmp_path, max_shard_size=shard_size)
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        wanted = source(x).last_hidden_state
    settings = {"ffn_layer": "swiglufused"} if is_gated else {}
    assert_computes(tmp_path, wanted, x, **settings, **more)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_small_patch14_dinov2", {}),
        ("vit_small_patch14_reg4_dinov2", {"num_register_tokens": 4}),
        ("vit_giant_patch14_reg4_dinov2", {"num_register_tokens": 4, "ffn_layer": "swiglufused"}),
    ],
)
def test_a_file_of_timm_computes_the_same_here(name, settings, tmp_path):
    timm = pytest.importorskip("timm", exc_type=ImportError)  # it cannot do without torchvision
    source = fill(timm.create_model(name, pretrained=False, img_size=56, **SIZE))
    torch.save(source.state_dict(), tmp_path / "weights.bin")
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        wanted = source.forward_features(x)
    assert_computes(tmp_path / "weights.bin", wanted, x, **settings)
