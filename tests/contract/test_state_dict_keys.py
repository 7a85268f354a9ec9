"""State-dict keys, their order, shapes and parameter counts are those of the released files, so that weights travel both ways.

Models are built on the meta device: no memory, no initialisation. Numbers: the official models at 518 px, patch 14.
"""

import pytest
import torch

from dinov2.hub import backbones
from dinov2.layers import DINOHead
from dinov2.models import vision_transformer as vits

# name: (channels, blocks, state-dict keys, parameters without and with 4 registers)
SIZES = {
    "vit_small": (384, 12, 175, 22_056_576, 22_058_112),
    "vit_base": (768, 12, 175, 86_580_480, 86_583_552),
    "vit_large": (1024, 24, 343, 304_368_640, 304_372_736),
    "vit_giant2": (1536, 40, 567, 1_136_480_768, 1_136_486_912),
}


def build(arch, **settings):
    ffn = "swiglufused" if arch == "vit_giant2" else "mlp"
    defaults = {"patch_size": 14, "img_size": 518, "init_values": 1.0, "block_chunks": 0, "ffn_layer": ffn}
    with torch.device("meta"):
        return vits.__dict__[arch](**{**defaults, **settings})


def expected_shapes(arch, *, registers, block_prefix):
    """The contract's table, in the order of the files."""
    d, depth = SIZES[arch][:2]
    shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 37 * 37 + 1, d)}
    if registers:
        shapes["register_tokens"] = (1, registers, d)
    shapes["mask_token"] = (1, d)
    shapes["patch_embed.proj.weight"], shapes["patch_embed.proj.bias"] = (d, 3, 14, 14), (d,)
    if arch == "vit_giant2":
        ffn = {"w12.weight": (8192, d), "w12.bias": (8192,), "w3.weight": (d, 4096), "w3.bias": (d,)}
    else:
        ffn = {"fc1.weight": (4 * d, d), "fc1.bias": (4 * d,), "fc2.weight": (d, 4 * d), "fc2.bias": (d,)}
    block = {
        "norm1.weight": (d,),
        "norm1.bias": (d,),
        "attn.qkv.weight": (3 * d, d),
        "attn.qkv.bias": (3 * d,),
        "attn.proj.weight": (d, d),
        "attn.proj.bias": (d,),
        "ls1.gamma": (d,),
        "norm2.weight": (d,),
        "norm2.bias": (d,),
        **{f"mlp.{key}": shape for key, shape in ffn.items()},
        "ls2.gamma": (d,),
    }
    for i in range(depth):
        shapes.update({f"{block_prefix(i)}.{key}": shape for key, shape in block.items()})
    return {**shapes, "norm.weight": (d,), "norm.bias": (d,)}


def shapes_of(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("arch", SIZES)
def test_state_dict_of_a_flat_backbone_equals_the_contract(arch, registers):
    model = build(arch, num_register_tokens=registers)
    want = expected_shapes(arch, registers=registers, block_prefix=lambda i: f"blocks.{i}")
    assert list(shapes_of(model).items()) == list(want.items())
    assert len(want) == SIZES[arch][2] + (registers > 0)
    assert count(model) == SIZES[arch][4 if registers else 3]


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("arch", SIZES)
def test_state_dict_of_a_chunked_backbone_keeps_global_block_indices(arch, registers):
    model = build(arch, num_register_tokens=registers, block_chunks=4)
    size = SIZES[arch][1] // 4
    want = expected_shapes(arch, registers=registers, block_prefix=lambda i: f"blocks.{i // size}.{i}")
    assert list(shapes_of(model).items()) == list(want.items())
    assert count(model) == SIZES[arch][4 if registers else 3]
    assert [len(chunk) for chunk in model.blocks] == [size, 2 * size, 3 * size, 4 * size]


def test_default_of_the_class_is_one_chunk():
    with torch.device("meta"):
        keys = vits.vit_small().state_dict()
    assert "blocks.0.11.norm1.weight" in keys


@pytest.mark.parametrize("falsy", [0, None])
def test_backbone_without_layer_scale_has_151_keys(falsy):
    assert len(build("vit_small", init_values=falsy).state_dict()) == 151


def test_hub_entries_build_the_released_shapes():
    with torch.device("meta"):
        models = {size: getattr(backbones, f"dinov2_vit{size}14_reg")(pretrained=False) for size in "sblg"}
    assert [count(models[size]) for size in "sblg"] == [sizes[4] for sizes in SIZES.values()]


def test_head_has_the_contract_keys_and_size():
    with torch.device("meta"):
        head = DINOHead(384, 65536)
    assert list(shapes_of(head).items()) == [
        ("mlp.0.weight", (2048, 384)),
        ("mlp.0.bias", (2048,)),
        ("mlp.2.weight", (2048, 2048)),
        ("mlp.2.bias", (2048,)),
        ("mlp.4.weight", (256, 2048)),
        ("mlp.4.bias", (256,)),
        ("last_layer.weight_g", (65536, 1)),
        ("last_layer.weight_v", (65536, 256)),
    ]
    assert count(head) == 22_352_128


LAST_LAYER = ["last_layer.weight_g", "last_layer.weight_v"]


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"nlayers": 1}, ["mlp.weight", "mlp.bias", *LAST_LAYER]),
        ({"nlayers": 0}, ["mlp.weight", "mlp.bias", *LAST_LAYER]),
        ({"nlayers": 2}, ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", *LAST_LAYER]),
        ({"mlp_bias": False}, ["mlp.0.weight", "mlp.2.weight", "mlp.4.weight", *LAST_LAYER]),
    ],
)
def test_head_variants_have_the_contract_keys(settings, keys):
    assert list(DINOHead(8, 16, hidden_dim=12, bottleneck_dim=4, **settings).state_dict()) == keys


def test_head_with_batch_norm_numbers_its_layers_as_official():
    keys = DINOHead(8, 16, use_bn=True, hidden_dim=12, bottleneck_dim=4).state_dict()
    assert {key.split(".")[1] for key in keys if key.startswith("mlp.")} == {"0", "1", "3", "4", "6"}
    assert "mlp.1.running_mean" in keys
    assert "mlp.4.running_mean" in keys


def test_additive_head_flags_add_no_state():
    plain = DINOHead(8, 16, hidden_dim=12, bottleneck_dim=4)
    flagged = DINOHead(
        8,
        16,
        hidden_dim=12,
        bottleneck_dim=4,
        normalise=False,
        scale=3.0,
        freeze_prototypes=True,
        bottleneck_norm="batch_per_group",
    )
    assert list(plain.state_dict()) == list(flagged.state_dict())
