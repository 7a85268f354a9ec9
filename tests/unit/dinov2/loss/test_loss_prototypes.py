"""The losses that never hold a batch's logits equal the plain ones, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2.loss import prototype_loss
from dinov2.loss.dino_clstoken_loss import DINOLoss, cross_entropy_matrix
from dinov2.loss.ibot_patch_loss import iBOTPatchLoss
from dinov2.loss.prototype_loss import CentredTargets, LossTerm, StoredTargets, entropies_of, prototype_losses

TEMP, TEACHER_TEMP = 0.1, 0.05
C = 16


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tensors take several blocks of prototypes, the last one cut, and several walks."""
    monkeypatch.setitem(prototype_loss._PROTOTYPES_A_BLOCK, "cpu", 32)
    monkeypatch.setitem(prototype_loss._ROWS_A_WALK, "cpu", 12)


def units(*shape: int, length: float = 1.0) -> Tensor:
    return length * F.normalize(torch.randn(*shape), dim=-1)


def centred(n_samples: int, n_targets: int, n_prototypes: int, *, length: float = 1.0) -> CentredTargets:
    center = 0.1 * torch.randn(1, n_prototypes)
    return CentredTargets(units(n_samples, n_targets, C, length=length), units(n_prototypes, C), center, TEACHER_TEMP)


def term_of(targets: CentredTargets | StoredTargets, n_samples: int, n_rows: int, *, length: float = 1.0) -> LossTerm:
    n_targets = targets.stored().probabilities.shape[1]
    student = units(n_samples, n_rows, C, length=length).requires_grad_()
    return LossTerm(student, targets, torch.rand(n_samples, n_rows, n_targets) / n_samples)


def plain_losses(weight: Tensor, term: LossTerm) -> Tensor:
    """[B, S]: logits, log-softmax, loss, one after the other."""
    logits = (term.student @ weight.t()).transpose(0, 1)  # [S, B, K]
    cells = cross_entropy_matrix(
        logits, term.targets.stored().probabilities.transpose(0, 1), student_temp=TEMP
    )  # [S, T, B]
    return (cells.permute(2, 0, 1) * term.weights).sum(-1)


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.parametrize(("n_samples", "n_rows", "n_targets"), [(3, 5, 2), (40, 1, 1), (4, 6, 1), (1, 30, 3)])
@pytest.mark.parametrize("n_prototypes", [32, 100])
def test_values_and_gradients_equal_the_plain_ones(
    n_samples: int, n_rows: int, n_targets: int, n_prototypes: int
) -> None:
    weight = units(n_prototypes, C).requires_grad_()
    term = term_of(centred(n_samples, n_targets, n_prototypes), n_samples, n_rows)
    found = prototype_losses(weight, [term], student_temp=TEMP)
    want = plain_losses(weight, term)
    torch.testing.assert_close(found.per_row[0], want.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.total, want.sum(), rtol=1e-6, atol=0)
    for ours, plain in zip(
        gradients(found.total, weight, term.student), gradients(want.sum(), weight, term.student), strict=True
    ):
        assert relative(ours, plain) < 1e-5


def test_targets_that_are_stored_give_the_same_as_targets_from_factors() -> None:
    weight = units(100, C).requires_grad_()
    term = term_of(centred(7, 2, 100), 7, 4)
    stored = term._replace(targets=term.targets.stored())
    a, b = (prototype_losses(weight, [t], student_temp=TEMP) for t in (term, stored))
    torch.testing.assert_close(a.per_row[0], b.per_row[0], rtol=1e-5, atol=1e-7)
    assert relative(gradients(a.total, weight)[0], gradients(b.total, weight)[0]) < 1e-5


def test_terms_of_one_head_add_up_in_their_scales() -> None:
    weight = units(100, C).requires_grad_()
    first = term_of(centred(3, 2, 100), 3, 5)._replace(scale=0.5)
    second = term_of(centred(20, 1, 100), 20, 1)._replace(scale=3.0)
    found = prototype_losses(weight, [first, second], student_temp=TEMP)
    want = 0.5 * plain_losses(weight, first).sum() + 3.0 * plain_losses(weight, second).sum()
    torch.testing.assert_close(found.total, want, rtol=1e-6, atol=0)
    tensors = weight, first.student, second.student
    for ours, plain in zip(gradients(found.total, *tensors), gradients(want, *tensors), strict=True):
        assert relative(ours, plain) < 1e-5


def test_logits_beyond_the_range_of_the_exponential_are_no_matter() -> None:
    weight = units(100, C).requires_grad_()
    term = term_of(centred(6, 2, 100, length=80.0), 6, 3, length=80.0)  # logits up to 800 and 1,600
    found = prototype_losses(weight, [term], student_temp=TEMP)
    want = plain_losses(weight, term)
    assert torch.isfinite(found.total)
    torch.testing.assert_close(found.total, want.sum(), rtol=1e-5, atol=0)
    assert relative(gradients(found.total, weight)[0], gradients(want.sum(), weight)[0]) < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
def test_products_in_reduced_precision_stay_near_the_plain_ones(dtype: torch.dtype, tolerance: float) -> None:
    weight = units(100, C).requires_grad_()
    # The weights of a large batch: in float16 the gradient on a logit would be lost without a common unit.
    term = term_of(centred(10, 2, 100), 10, 4)
    term = term._replace(weights=term.weights * 1e-5)
    found = prototype_losses(weight, [term], student_temp=TEMP, dtype=dtype)
    want = plain_losses(weight, term)
    torch.testing.assert_close(found.total, want.sum(), rtol=1e-3, atol=0)
    for ours, plain in zip(
        gradients(found.total, weight, term.student), gradients(want.sum(), weight, term.student), strict=True
    ):
        assert relative(ours, plain) < tolerance


def test_a_factor_on_the_loss_reaches_the_gradients_and_their_dtypes_are_the_inputs() -> None:
    weight = units(64, C).bfloat16().requires_grad_()
    term = term_of(centred(3, 1, 64), 3, 2)
    found = prototype_losses(weight, [term], student_temp=TEMP)
    once = gradients(found.total, weight, term.student)
    found = prototype_losses(weight, [term], student_temp=TEMP)
    thousandfold = gradients(found.total * 1024, weight, term.student)
    assert [g.dtype for g in once] == [torch.bfloat16, torch.float32]
    for ours, scaled in zip(once, thousandfold, strict=True):
        torch.testing.assert_close(scaled, ours * 1024)


def test_gradients_cannot_be_taken_twice_from_the_same_losses() -> None:
    weight, term = units(64, C).requires_grad_(), term_of(centred(3, 1, 64), 3, 2)
    found = prototype_losses(weight, [term], student_temp=TEMP)
    found.total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="already taken"):
        found.total.backward()


def test_no_rows_at_all_lose_nothing_and_pull_nowhere() -> None:
    weight = units(64, C).requires_grad_()
    term = term_of(centred(0, 1, 64), 0, 1)
    found = prototype_losses(weight, [term], student_temp=TEMP)
    assert found.total == 0
    assert gradients(found.total, weight)[0].abs().max() == 0


def test_frozen_prototypes_get_no_gradient() -> None:
    weight, term = units(64, C), term_of(centred(3, 1, 64), 3, 2)
    prototype_losses(weight, [term], student_temp=TEMP).total.backward()
    assert weight.grad is None
    assert term.student.grad is not None


def test_entropies_are_those_of_the_targets() -> None:
    targets = centred(9, 2, 100)
    term = term_of(targets, 9, 3)._replace(diagnose=True)
    found = prototype_losses(units(100, C), [term], student_temp=TEMP).entropies
    want = entropies_of(targets.stored().probabilities)
    assert found is not None
    torch.testing.assert_close(found.mean, want.mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.of_mean, want.of_mean, rtol=1e-5, atol=0)
    assert prototype_losses(units(100, C), [term._replace(diagnose=False)], student_temp=TEMP).entropies is None


@pytest.mark.parametrize("make", [DINOLoss, iBOTPatchLoss, lambda k: iBOTPatchLoss(k, center_over_all_patches=True)])
@pytest.mark.parametrize("n_rows", [7, 0])
def test_the_centre_moves_by_factors_as_by_logits(make, n_rows: int) -> None:
    bottleneck, weight = units(n_rows, C), units(64, C)
    by_logits, by_factors = make(64), make(64)
    for loss in (by_logits, by_factors):
        loss.center.fill_(0.3)
    by_logits.update_center((bottleneck @ weight.t()).unsqueeze(0))
    by_factors.update_center_from_factors(bottleneck, weight)
    for loss in (by_logits, by_factors):
        loss.apply_center_update()
    torch.testing.assert_close(by_factors.center, by_logits.center, rtol=1e-5, atol=1e-7)
    assert by_factors.center.shape == by_logits.center.shape
