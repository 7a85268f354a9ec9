"""The training step gives the losses and gradients of the same step written plainly (`benchmarks/plain_step.py`)."""

import argparse
from collections.abc import Mapping

import pytest
import step as benchmark
from omegaconf import OmegaConf
from torch import Tensor

ARGS = argparse.Namespace(arch="vit_micro", images=3, prototypes=1200, sides=(56, 28), device="cpu")


def losses_and_gradients(kind: str, precision: str, **changes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    cfg = benchmark.make_config(ARGS, precision)
    # Every branch has a part in the gradients, and no sample is left out of one.
    cfg = OmegaConf.merge(cfg, {"student": {"drop_path_rate": 0.0, "layerscale": 0.3}}, changes)
    step = benchmark.Step(kind, cfg, benchmark.make_batch(cfg), device="cpu")
    losses = step.model.forward_backward(step.batch, benchmark.TEMP)
    gradients = {n: p.grad for n, p in step.model.student.named_parameters() if p.grad is not None}
    return losses, gradients


def relative(ours: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> float:
    """Of all gradients as one vector."""
    assert set(ours) == set(plain)
    off = sum(float((ours[name] - plain[name]).square().sum()) for name in plain)
    return (off / sum(float(value.square().sum()) for value in plain.values())) ** 0.5


@pytest.mark.parametrize("separate_head", [False, True])
@pytest.mark.parametrize(("precision", "of_loss", "of_gradients"), [("fp32", 1e-5, 1e-5), ("bf16", 1e-4, 3e-2)])
def test_the_step_equals_its_plain_twin(
    precision: str, of_loss: float, of_gradients: float, separate_head: bool
) -> None:
    changes = {"ibot": {"separate_head": separate_head}}
    ours, plain = (losses_and_gradients(kind, precision, **changes) for kind in ("ours", "plain"))
    total = float(sum(plain[0].values()))
    assert {name: float(value) for name, value in ours[0].items()} == pytest.approx(
        {name: float(value) for name, value in plain[0].items()}, abs=of_loss * total, rel=0
    )
    assert relative(ours[1], plain[1]) < of_gradients
