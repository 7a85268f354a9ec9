"""The routings for two views of a study."""

import pytest
import torch

from dinov2.loss.routing import CropSlots, build_router
from dinov2.utils.errors import UserError
from vet_extensions.routing import CrossOnly, Symmetric, VetDino, register


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


def routed(router, batch=3, *, single=()):
    """The routing of a batch in which the samples `single` have one image only."""
    slots = CropSlots.of_layout(router.layout, batch)
    sources = [s.clone() for s in (slots.student_globals, slots.student_locals, slots.teacher_globals)]
    for rows in sources:
        rows[:, list(single)] = 0
    return router(CropSlots(*sources, n_shared=slots.n_shared))


def total(routing):
    return routing.dino_global.sum((0, 1)) + routing.dino_local.sum((0, 1))


@pytest.mark.parametrize("router_type", [VetDino, CrossOnly, Symmetric])
def test_every_routing_costs_the_crops_of_same_image(router_type):
    layout, official = router_type({}, 8).layout, build_router({"name": "same_image"}, 8).layout
    for slots in ("student_globals", "student_locals", "teacher_globals"):
        assert len(getattr(layout, slots)) == len(getattr(official, slots))


@pytest.mark.parametrize("router_type", [VetDino, CrossOnly, Symmetric])
def test_the_description_states_the_crop_budget(router_type):
    router = router_type({}, 8)
    shared = router.layout.n_shared
    assert f"student 2 global + 8 local, teacher 2 global, of which {shared} shared" in router.describe()


def test_cross_only_pairs_every_crop_of_b_with_every_crop_of_a():
    router = CrossOnly({}, 2)
    assert (set(router.layout.student_globals + router.layout.student_locals), set(router.layout.teacher_globals)) == (
        {1},
        {0},
    )
    routing = routed(router)
    assert torch.allclose(routing.dino_global, torch.full((2, 2, 3), 1 / 8))
    assert torch.allclose(routing.dino_local, torch.full((2, 2, 3), 1 / 8))


def test_cross_only_has_no_pair_within_an_image_of_a_study_with_two():
    router = CrossOnly({}, 2)
    slots = CropSlots.of_layout(router.layout, 2)
    mixed = torch.tensor([[1, 1], [0, 0]])  # the second student crop is of A after all
    routing = router(CropSlots(mixed, slots.student_locals, slots.teacher_globals, n_shared=0))
    assert routing.dino_global[1].eq(0).all()
    assert torch.allclose(total(routing), torch.ones(2))


def test_cross_only_compares_all_crops_of_a_study_with_one_image():
    routing = routed(CrossOnly({}, 2), single=[1])
    assert torch.allclose(routing.dino_global[:, :, 1], torch.full((2, 2), 1 / 8))
    assert torch.allclose(total(routing), torch.ones(3))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("n_local", [2, 3, 8])
def test_each_view_teaches_half_of_the_symmetric_loss(weight, n_local):
    routing = routed(Symmetric({"cross_view_weight": weight}, n_local))
    by_teacher = routing.dino_global.sum(0) + routing.dino_local.sum(0)  # [T, B]
    assert torch.allclose(by_teacher, torch.full((2, 3), 0.5))


def test_symmetric_goes_in_both_directions_and_never_compares_a_crop_with_itself():
    routing = routed(Symmetric({"cross_view_weight": 0.5}, 2))
    assert (routing.dino_global[[0, 1], [1, 0]] > 0).all()
    assert routing.dino_global[[0, 1], [0, 1]].eq(0).all()
    assert routing.dino_local[1, 0, 0] / routing.dino_local[0, 0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("n_local", [2, 8])
def test_a_single_image_under_symmetric_is_same_image_to_the_weight(n_local):
    official = build_router({"name": "same_image"}, n_local)
    expected = official(CropSlots.of_layout(official.layout, 1))
    routing = routed(Symmetric({"cross_view_weight": 3.0}, n_local), single=[2])
    assert torch.allclose(routing.dino_global[:, :, 2], expected.dino_global[:, :, 0])
    assert torch.allclose(routing.dino_local[:, :, 2], expected.dino_local[:, :, 0])


def test_ibot_is_defined_where_student_and_teacher_share_pixels():
    assert [router({}, 2).layout.n_shared for router in (VetDino, CrossOnly, Symmetric)] == [1, 0, 2]


@pytest.mark.parametrize(
    ("router_type", "config"),
    [(Symmetric, {"cross_view_weight": 0}), (VetDino, {"cross_view_weight": 0, "student_globals": [0, 2]})],
)
def test_a_routing_without_a_single_pair_is_refused(router_type, config):
    with pytest.raises(UserError, match="cross_view_weight above 0"):
        router_type(config, 0)


def test_the_plugin_offers_all_three_by_name():
    register()
    assert [type(build_router({"name": name}, 2)) for name in ("vet_dino", "cross_only", "symmetric")] == [
        VetDino,
        CrossOnly,
        Symmetric,
    ]
