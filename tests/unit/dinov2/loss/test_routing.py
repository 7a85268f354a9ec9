"""Loss routing in the core: layouts, weights, the official case."""

import pytest
import torch

from dinov2.loss.routing import CropLayout, CropSlots, LossRouting, build_router
from dinov2.utils.errors import UserError


def test_same_image_weighs_every_cell_but_self_comparisons_equally():
    router = build_router({"name": "same_image"}, 3)
    routing = router(CropSlots.of_layout(router.layout, 5))
    assert torch.allclose(routing.dino_global[:, :, 0], torch.tensor([[0.0, 1 / 8], [1 / 8, 0.0]]))
    assert torch.allclose(routing.dino_local, torch.full((3, 2, 5), 1 / 8))


def test_same_image_without_local_crops_keeps_the_official_third():
    router = build_router({"name": "same_image"}, 0)
    routing = router(CropSlots.of_layout(router.layout, 2))
    assert routing.dino_global[0, 1, 0] == pytest.approx(1 / 3)
    assert routing.dino_local.shape == (0, 2, 2)


def test_unknown_routing_lists_the_known_ones():
    with pytest.raises(UserError, match="same_image"):
        build_router({"name": "same_imgae"}, 2)


def test_unknown_key_of_a_routing_is_refused():
    with pytest.raises(UserError, match="cross_view_weight"):
        build_router({"name": "same_image", "cross_view_weight": 1}, 2)


def test_shared_slots_must_come_from_the_same_image():
    with pytest.raises(UserError, match="same images"):
        CropLayout(student_globals=(0, 1), student_locals=(), teacher_globals=(1, 0), n_shared=1)


def test_normalised_weights_sum_to_one_per_sample_and_stay_zero_without_cells():
    glob, loc = torch.rand(2, 2, 4), torch.rand(3, 2, 4)
    glob[..., 3], loc[..., 3] = 0, 0
    routing = LossRouting.normalised(glob, loc)
    total = routing.dino_global.sum((0, 1)) + routing.dino_local.sum((0, 1))
    assert torch.allclose(total, torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_description_holds_a_row_for_every_student_crop():
    text = build_router({"name": "same_image"}, 2).describe()
    assert text.count("student global") == 2
    assert text.count("student local") == 2
