"""Sinkhorn targets: balanced, per group, safe; the same in one process and in two."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dinov2.loss import DINOLoss, iBOTPatchLoss
from dinov2.loss.sinkhorn import sinkhorn_knopp


def make_logits(n=24, k=10, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def official_arithmetic(logits, temp, n_iterations=3):
    """The official steps, with all their divisions."""
    q = torch.exp(logits.double() / temp).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(n_iterations):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T


@pytest.mark.parametrize("n_iterations", [1, 3])
def test_targets_equal_the_official_arithmetic(n_iterations):
    got = sinkhorn_knopp(make_logits(), temp=0.07, n_iterations=n_iterations)
    torch.testing.assert_close(got, official_arithmetic(make_logits(), 0.07, n_iterations).float())


def test_rows_sum_to_one_and_prototypes_are_used_evenly():
    q = sinkhorn_knopp(make_logits(), temp=0.1, n_iterations=50)
    torch.testing.assert_close(q.sum(1), torch.ones(24))
    torch.testing.assert_close(q.sum(0), torch.full((10,), 2.4), rtol=1e-3, atol=0)


def test_each_group_is_balanced_as_if_it_came_alone():
    loss, logits = DINOLoss(10), make_logits()
    groups = torch.tensor([0, 2, 1, 2]).repeat(6)
    together = loss.sinkhorn_knopp_teacher(logits, 0.07, groups=groups)
    for group in range(3):
        alone = loss.sinkhorn_knopp_teacher(logits[groups == group], 0.07)
        torch.testing.assert_close(together[groups == group], alone)


def test_one_group_equals_no_groups():
    no_groups = sinkhorn_knopp(make_logits(), temp=0.07)
    one_group = sinkhorn_knopp(make_logits(), temp=0.07, groups=torch.zeros(24, dtype=torch.int64))
    torch.testing.assert_close(one_group, no_groups)


@pytest.mark.parametrize("groups", [None, torch.arange(24) % 2])
def test_max_subtraction_changes_nothing_where_the_official_code_works(groups):
    plain = sinkhorn_knopp(make_logits(), temp=0.07, groups=groups)
    safe = sinkhorn_knopp(make_logits(), temp=0.07, groups=groups, subtract_max=True)
    torch.testing.assert_close(safe, plain)


@pytest.mark.parametrize("scale", [50.0, 1e4])
def test_max_subtraction_survives_logits_that_overflow(scale):
    logits = make_logits() * scale
    q = DINOLoss(10, sinkhorn_subtract_max=True).sinkhorn_knopp_teacher(logits, 0.04)
    assert not torch.isfinite(DINOLoss(10).sinkhorn_knopp_teacher(logits, 0.04)).all()
    torch.testing.assert_close(q.sum(1), torch.ones(24))


def test_ibot_targets_leave_the_arguments_alone():
    logits, count = make_logits(), torch.tensor([24])
    before = logits.clone()
    q = iBOTPatchLoss(10).sinkhorn_knopp_teacher(logits, 0.07, n_masked_patches_tensor=count)
    torch.testing.assert_close(q, official_arithmetic(logits, 0.07).float())
    assert torch.equal(logits, before)
    assert count.tolist() == [24]


def test_ibot_targets_of_no_patch_are_empty():
    count = torch.zeros(1, dtype=torch.int64)
    assert iBOTPatchLoss(10).sinkhorn_knopp_teacher(make_logits(0), 0.07, count).shape == (0, 10)


def _run_half(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    rows = slice(0, 16) if rank == 0 else slice(16, 24)  # processes may hold different numbers of rows
    groups = (torch.arange(24) % 3 if rank == 0 else torch.zeros(24, dtype=torch.int64))[rows]
    logits = make_logits()[rows]
    centre = DINOLoss(10)
    centre.update_center(make_logits(12, seed=rank))
    centre.apply_center_update()
    targets = [sinkhorn_knopp(logits, temp=0.07, **flags) for flags in ({}, {"groups": groups}, {"subtract_max": True})]
    torch.save([*targets, centre.center], f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_targets_and_centre_of_one(tmp_path):
    mp.spawn(_run_half, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    groups = torch.cat([torch.arange(16) % 3, torch.zeros(8, dtype=torch.int64)])
    for index, flags in enumerate(({}, {"groups": groups}, {"subtract_max": True})):
        torch.testing.assert_close(
            torch.cat([half[index] for half in halves]), sinkhorn_knopp(make_logits(), temp=0.07, **flags)
        )
    mean = torch.cat([make_logits(12, seed=rank) for rank in range(2)]).mean(0, keepdim=True)
    torch.testing.assert_close(halves[0][3], 0.1 * mean)
    assert torch.equal(halves[0][3], halves[1][3])
