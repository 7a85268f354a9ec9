"""Weights in other layouts and position embeddings on other grids."""

import pytest
import torch

from dinov2.models import vision_transformer as vits
from dinov2.models.pos_embed import interpolate_grid, resample_pos_embed
from dinov2.models.state_dicts import chunk_state_dict, dechunk_state_dict, extract_backbone_state
from dinov2.utils.errors import UserError


def make_positions(h, w, d=5):
    return torch.randn(1, 1 + h * w, d, generator=torch.Generator().manual_seed(h * w))


def make_state():
    return {"cls_token": torch.zeros(1), "blocks.3.norm1.weight": torch.ones(1), "norm.bias": torch.ones(2)}


def test_same_grid_passes_untouched():
    positions = make_positions(4, 4)
    assert resample_pos_embed(positions, (4, 4)) is positions


def test_resampling_keeps_class_position_constants_and_dtype():
    positions = torch.full((1, 17, 5), 3.0, dtype=torch.float16)
    positions[:, 0] = -1
    out = resample_pos_embed(positions, (9, 6))
    assert out.shape == (1, 55, 5)
    assert out.dtype == torch.float16
    assert (out[:, 0] == -1).all()
    torch.testing.assert_close(out[:, 1:], torch.full((1, 54, 5), 3.0, dtype=torch.float16))


@pytest.mark.parametrize(("antialias", "offset"), [(False, 0.1), (True, 0.0), (False, 0.0)])
@pytest.mark.parametrize("old_grid", [(16, 16), (7, 11)])
def test_enlarged_positions_come_back_exactly_through_the_models_interpolation(old_grid, antialias, offset):
    positions = make_positions(*old_grid)
    enlarged = resample_pos_embed(positions, (37, 37), old_grid=old_grid, antialias=antialias, round_trip_offset=offset)
    back = interpolate_grid(
        enlarged[:, 1:].unflatten(1, (37, 37)), old_grid, antialias=antialias, offset=offset
    ).flatten(1, 2)
    torch.testing.assert_close(back, positions[:, 1:], rtol=1e-4, atol=1e-5)


def test_without_the_correction_the_round_trip_loses_detail():
    positions = make_positions(16, 16)
    enlarged = resample_pos_embed(positions, (37, 37))
    back = interpolate_grid(enlarged[:, 1:].unflatten(1, (37, 37)), (16, 16), offset=0.1).flatten(1, 2)
    assert (back - positions[:, 1:]).abs().max() > 1e-3


def test_non_square_positions_need_their_grid():
    with pytest.raises(UserError, match="24 patches"):
        resample_pos_embed(make_positions(4, 6), (8, 8))
    with pytest.raises(UserError, match="5 x 5"):
        resample_pos_embed(make_positions(4, 6), (8, 8), old_grid=(5, 5))


def test_backbone_taken_to_a_larger_grid_gives_its_features_at_the_old_size():
    torch.manual_seed(0)
    settings = {"patch_size": 14, "init_values": 0.5, "block_chunks": 0}
    trained, exported = vits.vit_micro(img_size=56, **settings).eval(), vits.vit_micro(img_size=126, **settings).eval()
    torch.nn.init.normal_(trained.pos_embed)
    exported.load_state_dict(exported.adapt_state_dict(trained.state_dict()), strict=True)
    x = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(exported(x), trained(x), rtol=1e-4, atol=1e-4)


def test_chunking_and_dechunking_are_inverse_and_leave_other_names():
    flat = make_state()
    chunked = chunk_state_dict(flat, 2)
    assert list(chunked) == ["cls_token", "blocks.1.3.norm1.weight", "norm.bias"]
    assert list(dechunk_state_dict(chunked)) == list(flat)
    assert list(dechunk_state_dict(flat)) == list(flat)
    assert list(chunk_state_dict(chunked, 2)) == list(chunked)


def test_dechunking_works_below_a_prefix():
    assert list(dechunk_state_dict({"backbone.blocks.0.2.mlp.fc1.bias": torch.ones(1)})) == [
        "backbone.blocks.2.mlp.fc1.bias"
    ]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"teacher": {**below("backbone.", state), "dino_head.mlp.weight": torch.ones(1)}},
        lambda state: {"teacher": below("module.backbone.", state)},
        lambda state: {
            "model": {**below("student.backbone.", others(state)), **below("teacher.backbone.", state)},
            "iteration": 7,
        },
    ],
    ids=["hub", "model", "teacher", "ddp", "training"],
)
def test_backbone_is_found_in_every_kind_of_file(wrap):
    got = extract_backbone_state(wrap(make_state()))
    assert list(got) == list(make_state())
    assert all(torch.equal(got[name], value) for name, value in make_state().items())


def test_file_without_weights_is_named_as_such():
    with pytest.raises(UserError, match="epoch"):
        extract_backbone_state({"epoch": 3})


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def others(state):
    return {name: value - 5 for name, value in state.items()}
