"""Proof, in every run, that what a method means to train does train, and that nothing else moves. `finetune` calls it.

A tuning that silently trains nothing, or everything, still gives scores: those of another method. So names are compared first,
then gradients in the first steps, then the weights themselves at the end. A loop that passes all three has trained what it says.
"""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

WINDOW_STEPS = 10
"""Steps within which every parameter must have had a gradient. One is too few: LoRA's A has none while its B is still zero."""


class NotTrainedAsIntended(RuntimeError):
    """Other parameters were trained than the method means to train; the scores would be those of another method."""


class ParameterWatch:
    """Watches one model through its training."""

    def __init__(
        self,
        model: nn.Module,
        *,
        intended: frozenset[str],
        optimised: Iterable[nn.Parameter],
        start: Mapping[str, str] | None = None,
    ) -> None:
        """intended: names of the parameters that shall train. optimised: what the optimizer holds.

        Raises `NotTrainedAsIntended` where others require a gradient, or others are in the optimizer.
        """
        self._model, self._intended = model, intended
        self._compare({name for name, p in model.named_parameters() if p.requires_grad}, "require a gradient")
        held = {id(parameter) for parameter in optimised}
        self._compare({name for name, p in model.named_parameters() if id(p) in held}, "are in the optimizer")
        self._start = _fingerprints(model)
        self._seen: set[str] = set()
        self._n_steps = 0

    def after_backward(self, *, is_last: bool) -> None:
        """Look at the gradients of a step; once all are seen, or in the last step of the window, say what is wrong."""
        if self._n_steps >= WINDOW_STEPS:
            return
        self._n_steps += 1
        grads = {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}
        self._seen |= {name for name, grad in grads.items() if bool(grad.any())}
        if self._seen - self._intended or self._n_steps == WINDOW_STEPS or is_last:
            self._compare(self._seen, "got a gradient that is not zero")

    def check_changes(self) -> None:
        """Compare all weights and buffers with what they were at the start."""
        now = _fingerprints(self._model)
        self._compare({name for name, value in now.items() if value != self._start[name]}, "changed")

    def state(self) -> dict[str, object]:
        """What `resume` needs, in a form that a checkpoint can hold."""
        return {"start": self._start, "seen": sorted(self._seen), "n_steps": self._n_steps}

    def resume(self, state: Mapping[str, object]) -> None:
        """Go on where the watch of `state` stopped."""
        start, seen, n_steps = state["start"], state["seen"], state["n_steps"]
        assert isinstance(start, dict)
        assert isinstance(seen, list)
        assert isinstance(n_steps, int)
        self._start, self._seen, self._n_steps = start, set(seen), n_steps

    def _compare(self, found: set[str], what: str) -> None:
        missing, surplus = sorted(self._intended - found), sorted(found - self._intended)
        parts = []
        if missing:
            parts.append(
                f"{len(missing)} of {len(self._intended)} parameters that should train do not: {_some(missing)}"
            )
        if surplus:
            parts.append(f"{len(surplus)} that should be frozen do: {_some(surplus)}")
        if parts:
            raise NotTrainedAsIntended(f"Of what {what}, {'; '.join(parts)}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _fingerprints(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer, by name."""
    return {name: _fingerprint(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def _fingerprint(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
