"""The DINO, iBOT and KoLeo losses, and the running centre."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss
from dinov2.loss.dino_clstoken_loss import cross_entropy_matrix


def make_rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_targets(*shape, seed=1):
    return torch.softmax(make_rows(*shape, seed=seed), dim=-1)


def test_cross_entropy_matrix_holds_every_pair():
    student, teacher = make_rows(3, 4, 8), make_targets(2, 4, 8)
    matrix = cross_entropy_matrix(student, teacher, student_temp=0.1)
    assert matrix.shape == (3, 2, 4)
    by_hand = F.cross_entropy(student[2] / 0.1, teacher[1], reduction="none")
    torch.testing.assert_close(matrix[2, 1], by_hand)


def test_cross_entropy_matrix_of_no_student_crop_is_empty():
    assert cross_entropy_matrix(make_rows(0, 4, 8), make_targets(2, 4, 8)).shape == (0, 2, 4)


def test_cross_entropy_stays_in_fp32_under_autocast():
    student, teacher = make_rows(3, 4, 8), make_targets(2, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        matrix = cross_entropy_matrix(student, teacher)
        loss = DINOLoss(8)(list(student), list(teacher))
    assert torch.equal(matrix, cross_entropy_matrix(student, teacher))
    assert torch.equal(loss, DINOLoss(8)(list(student), list(teacher)))


def test_dino_loss_is_the_sum_over_pairs_of_the_batch_mean():
    student, teacher = make_rows(3, 4, 8), make_targets(2, 4, 8)
    pairs = cross_entropy_matrix(student, teacher).mean(-1).sum()
    torch.testing.assert_close(DINOLoss(8)(list(student), list(teacher)), pairs)


def test_centre_moves_one_step_late_towards_the_batch_mean():
    loss, logits = DINOLoss(8), make_rows(6, 8)
    loss.update_center(logits)
    assert loss.center.abs().max() == 0
    targets = loss.softmax_center_teacher(logits, 0.07)
    torch.testing.assert_close(loss.center, 0.1 * logits.mean(0, keepdim=True))
    torch.testing.assert_close(targets, torch.softmax((logits - loss.center) / 0.07, -1))
    loss.softmax_center_teacher(logits, 0.07)
    torch.testing.assert_close(loss.center, 0.1 * logits.mean(0, keepdim=True))


def test_a_checkpoint_between_steps_keeps_the_pending_centre():
    loss, logits = DINOLoss(8), make_rows(6, 8)
    loss.update_center(logits)
    saved = copy.deepcopy(loss.state_dict())
    loss.apply_center_update()
    assert torch.equal(saved["center"], loss.center)
    assert saved["center"].abs().max() > 0


def test_half_precision_logits_still_give_an_fp32_centre():
    loss = DINOLoss(8)
    loss.update_center(torch.full((3000, 8), 30.0, dtype=torch.float16))
    loss.apply_center_update()
    torch.testing.assert_close(loss.center, torch.full((1, 8), 3.0))


@pytest.mark.parametrize("kind", [DINOLoss, iBOTPatchLoss])
def test_the_centre_is_the_only_state(kind):
    assert list(kind(8).state_dict()) == ["center"]


def test_ibot_step_without_masked_patches_leaves_the_centre_finite_and_in_place():
    loss = iBOTPatchLoss(8)
    loss.update_center(make_rows(1, 5, 8))
    loss.apply_center_update()
    before = loss.center.clone()
    loss.update_center(make_rows(1, 0, 8))
    assert loss.softmax_center_teacher(make_rows(1, 0, 8), 0.07).shape == (1, 0, 8)
    torch.testing.assert_close(loss.center, before)


def test_ibot_loss_without_masked_patches_is_zero():
    masks = torch.zeros(4, 9, dtype=torch.bool)
    value = iBOTPatchLoss(8).forward_masked(make_rows(0, 8), make_targets(0, 8), masks)
    assert value == 0


def test_ibot_masked_loss_equals_the_dense_one_on_the_same_masks():
    masks = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) > 0.5
    masks[1] = False  # an image without a mask counts with loss 0
    student, teacher, loss = make_rows(4, 9, 8), make_targets(4, 9, 8), iBOTPatchLoss(8)
    torch.testing.assert_close(
        loss.forward_masked(student[masks], teacher[masks], masks), loss(student, teacher, masks)
    )


def test_ibot_padding_rows_do_not_count():
    masks = torch.zeros(2, 9, dtype=torch.bool)
    masks[0, :3] = True
    student, teacher, loss = make_rows(5, 8), make_targets(5, 8), iBOTPatchLoss(8)
    padded = loss.forward_masked(student, teacher, masks, n_masked_patches=3)
    torch.testing.assert_close(padded, loss.forward_masked(student[:3], teacher[:3], masks))


def test_koleo_picks_the_nearest_other_row():
    x = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, 0.2]]), dim=-1)
    assert KoLeoLoss().pairwise_NNs_inner(x).tolist() == [1, 0, 3, 2]


def test_koleo_is_smaller_for_rows_further_apart():
    spread, crowded = torch.eye(4), torch.eye(4) * 0.1 + 1
    assert KoLeoLoss()(spread) < KoLeoLoss()(crowded)


def test_koleo_of_one_row_is_finite():
    assert torch.isfinite(KoLeoLoss()(make_rows(1, 8)))


def test_koleo_in_half_precision_is_finite_with_the_cast_only():
    twins = torch.ones(2, 8, dtype=torch.float16)
    assert torch.isinf(KoLeoLoss()(twins))
    assert torch.isfinite(KoLeoLoss(cast_to_fp32=True)(twins))
