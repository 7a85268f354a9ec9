"""The vet_dino routing."""

import pytest
import torch

from dinov2.loss.routing import CropSlots
from dinov2.utils.errors import UserError
from vet_extensions.routing import VetDino


def route(config, n_local, batch=3):
    router = VetDino({"name": "vet_dino", **config}, n_local)
    return router, CropSlots.of_layout(router.layout, batch)


def test_teacher_sees_only_image_a_and_student_sees_both():
    router, _ = route({}, 4)
    assert router.layout.teacher_globals == (0, 0)
    assert router.layout.student_globals == (0, 1)
    assert router.layout.student_locals == (0, 0, 1, 1)
    assert router.layout.n_shared == 1


def test_crop_budget_equals_that_of_same_image():
    layout = route({}, 4)[0].layout
    assert (len(layout.student_globals), len(layout.teacher_globals), len(layout.student_locals)) == (2, 2, 4)


def test_a_crop_is_never_compared_with_itself_and_weights_sum_to_one():
    router, slots = route({}, 2)
    routing = router(slots)
    assert routing.dino_global[0, 0].eq(0).all()
    assert (routing.dino_global[0, 1] > 0).all()
    total = routing.dino_global.sum((0, 1)) + routing.dino_local.sum((0, 1))
    assert torch.allclose(total, torch.ones(3))


def test_cross_view_weight_sets_the_ratio_of_cells_across_to_cells_within():
    router, slots = route({"cross_view_weight": 0.25}, 2)
    routing = router(slots)
    assert routing.dino_global[1, 0, 0] / routing.dino_global[0, 1, 0] == pytest.approx(0.25)
    assert routing.dino_local[1, 0, 0] / routing.dino_local[0, 0, 0] == pytest.approx(0.25)


def test_a_study_with_one_image_is_routed_as_one_image():
    router, slots = route({"cross_view_weight": 0.0}, 2)
    slots.student_globals.data = slots.student_globals.clone()
    slots.student_locals.data = slots.student_locals.clone()
    slots.student_globals[:, 1], slots.student_locals[:, 1] = 0, 0  # sample 1 has no image B
    routing = router(slots)
    assert routing.dino_global[1, :, 0].eq(0).all()  # across views, weight 0
    assert (routing.dino_global[1, :, 1] > 0).all()  # the same slot of the single-image sample is within A
    assert (routing.dino_global.sum((0, 1)) + routing.dino_local.sum((0, 1))).allclose(torch.ones(3))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"student_locals": [1, 0]}, "local_crops_number"),
        ({"student_globals": 2}, "two counts"),
        ({"cross_view_weight": -1}, "0 or more"),
        ({"cross_view_wieght": 1}, "cross_view_weight"),
    ],
)
def test_mistakes_are_named(config, said):
    with pytest.raises(UserError, match=said):
        route(config, 4)
