"""The DINO and iBOT losses from bottleneck features, without logits of a whole batch. Called by `SSLMetaArch`.

Both losses have one form: a student row z and weights w_t over target distributions P_t give, with logits y = z W^T / tau,
    sum_t w_t * crossentropy(P_t, softmax(y)) = m * logsumexp(y) - sum_t w_t P_t . y,   m = sum_t w_t
and the gradient (m * softmax(y) - sum_t w_t P_t) / tau on y. Loss and gradients are computed together, in two walks over the
prototypes in blocks that stay in a processor's cache, where logits, softmax, loss and gradient one after the other move each
logit through main memory about ten times (benchmarks/step.py). `cross_entropy_matrix` and `lossfunc` are the plain twins.

Shape legend: B samples, S student rows of a sample, T target rows of a sample, C bottleneck channels, K prototypes, R = B * S.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinov2.loss.online_softmax import OnlineSoftmax

_PROTOTYPES_A_BLOCK = {"cpu": 512}
_ROWS_A_WALK = {"cpu": 256}
"""By device type: columns that are worked on at a time, and rows whose exponentials are kept between the two walks. Between 256
and 2,048 columns the CPU's time is the same; other devices take long blocks, for each one costs them a dozen launches."""
_PROTOTYPES_A_LONG_BLOCK, _ROWS_A_LONG_WALK = 16384, 4096
_LEAST_UNIT = 1e-30
"""For weights that are all 0."""


class CentredTargets(NamedTuple):
    """P = softmax((bottleneck weight^T - center) / temp). bottleneck: [B, T, C]; weight: [K, C]; center: K values."""

    bottleneck: Tensor
    weight: Tensor
    center: Tensor
    temp: float

    def samples(self, some: slice) -> "CentredTargets":
        return self._replace(bottleneck=self.bottleneck[some])

    def stored(self) -> "StoredTargets":
        """The same targets, all at once."""
        logits = self.bottleneck.float() @ self.weight.float().t()
        return StoredTargets(torch.softmax((logits - self.center.flatten()) / self.temp, dim=-1))


class StoredTargets(NamedTuple):
    """P as it is, [B, T, K], fp32: for targets that need all rows at once (Sinkhorn-Knopp)."""

    probabilities: Tensor

    def samples(self, some: slice) -> "StoredTargets":
        return StoredTargets(self.probabilities[some])

    def stored(self) -> "StoredTargets":
        return self


class LossTerm(NamedTuple):
    """Student rows that share one kind of target.

    student: [B, S, C], the head's normalised bottleneck. weights: [B, S, T], of each pair's cross-entropy. scale: of this term in
    the total. diagnose: also give the entropies of the targets.
    """

    student: Tensor
    targets: CentredTargets | StoredTargets
    weights: Tensor
    scale: float = 1.0
    diagnose: bool = False


class TargetEntropies(NamedTuple):
    """In nats, 0-d: the mean over the target rows, and that of the mean row."""

    mean: Tensor
    of_mean: Tensor


class PrototypeLosses(NamedTuple):
    """total: the sum of the terms' scaled losses, with a gradient. per_row: of each term, detached: [B, S], already weighted.

    entropies: of the targets of the term to be diagnosed; None without one.
    """

    total: Tensor
    per_row: list[Tensor]
    entropies: TargetEntropies | None


def entropies_of(probabilities: Tensor) -> TargetEntropies:
    """[..., K] -> how sharp the targets are, and how evenly they use the prototypes."""
    rows = probabilities.flatten(0, -2)
    return TargetEntropies(torch.special.entr(rows).sum(-1).mean(), torch.special.entr(rows.mean(0)).sum())


def prototype_losses(
    weight: Tensor, terms: Sequence[LossTerm], *, student_temp: float, dtype: torch.dtype = torch.float32
) -> PrototypeLosses:
    """Losses of all rows against the student's prototypes `weight` [K, C].

    dtype: of the matrix products; all else is fp32, also under autocast.
    """
    total, entropies, *per_row = _Walks.apply(weight, terms, student_temp, dtype, *(term.student for term in terms))
    diagnosed = any(term.diagnose for term in terms)
    return PrototypeLosses(total, per_row, TargetEntropies(*entropies) if diagnosed else None)


class _Walks(torch.autograd.Function):
    """Gradients are made in the forward pass, while the exponentials are at hand, and only scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, terms: Sequence[LossTerm], student_temp: float, dtype: torch.dtype, *_: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.autocast(weight.device.type, enabled=False):
            walk = _Walk(weight, student_temp, dtype, wants_weight_gradient=ctx.needs_input_grad[0])
            # Of all terms one unit, so that float16 products neither overflow nor lose what is small.
            peaks = [(term.weights * term.scale).abs().amax() for term in terms if term.weights.numel()]
            walk.unit = torch.stack([walk.unit * _LEAST_UNIT, *peaks]).max()
            per_row = [walk.term(term) for term in terms]
        total = torch.stack([rows.sum() * term.scale for rows, term in zip(per_row, terms, strict=True)]).sum()
        entropies = weight.new_zeros(2, dtype=torch.float32) if walk.entropies is None else walk.entropies
        ctx.mark_non_differentiable(entropies, *per_row)
        ctx.unit, ctx.gradients = walk.unit, (walk.weight_gradient, walk.student_gradients)
        ctx.dtypes = weight.dtype, [term.student.dtype for term in terms]
        return total, entropies, *per_row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients of these losses were already taken; compute the losses again"
        factor = grad_total * ctx.unit
        of_weight, of_students = ctx.gradients
        ctx.gradients = None
        weight_dtype, student_dtypes = ctx.dtypes
        # In place: that of the prototypes is as large as they are.
        of_students = [g.mul_(factor).to(dtype) for g, dtype in zip(of_students, student_dtypes, strict=True)]
        return None if of_weight is None else of_weight.mul_(factor).to(weight_dtype), None, None, None, *of_students


class _Walk:
    """What all rows share: the prototypes in the dtype of the products, and the gradients, in `unit`s."""

    def __init__(self, weight: Tensor, student_temp: float, dtype: torch.dtype, *, wants_weight_gradient: bool) -> None:
        self.weight = weight.detach().to(dtype)
        self.student_temp = student_temp
        self.dtype = dtype
        self.weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight_gradient else None
        self.student_gradients: list[Tensor] = []
        self.entropies: Tensor | None = None
        self._memory: dict[str, Tensor] = {}
        self.unit = weight.new_ones((), dtype=torch.float32)
        width = _PROTOTYPES_A_BLOCK.get(weight.device.type, _PROTOTYPES_A_LONG_BLOCK)
        self.blocks = [slice(start, min(start + width, len(weight))) for start in range(0, len(weight), width)]

    def softmax(self, purpose: str, n_rows: int) -> OnlineSoftmax:
        """An empty one for so many rows; it takes back the memory of the one before it for this purpose.

        Fresh memory would be fetched from the system page by page at each walk: a fifth of the time.
        """
        size = n_rows * len(self.weight)
        if len(self._memory.get(purpose, ())) < size:
            self._memory[purpose] = torch.empty(size, dtype=self.dtype, device=self.weight.device)
        return OnlineSoftmax(self._memory[purpose][:size], n_rows, self.blocks)

    def term(self, term: LossTerm) -> Tensor:
        """The weighted losses of a term's rows, [B, S] fp32; its gradients are added to those of the walk."""
        if not len(term.student):  # no patch was masked
            self.student_gradients.append(torch.zeros_like(term.student, dtype=torch.float32))
            return torch.zeros_like(term.weights[..., 0], dtype=torch.float32)
        per_row, gradients, entropies = [], [], _Entropies(len(self.weight), term.student.device)
        for some in _samples_a_walk(term):
            student, weights = term.student[some].detach(), term.weights[some].float()
            rows = _Rows(student.flatten(0, 1).to(self.dtype), self, targets=term.targets.samples(some))
            per_row.append(rows.first_walk(weights))
            gradients.append(rows.second_walk(weights * term.scale, entropies if term.diagnose else None))
        self.student_gradients.append(torch.cat(gradients).view(term.student.shape))
        if term.diagnose:
            self.entropies = entropies.result()
        return torch.cat(per_row)


class _Rows:
    """The rows of some samples on their way through the prototypes: first their sums, then, these being known, gradients."""

    def __init__(self, student: Tensor, walk: _Walk, *, targets: CentredTargets | StoredTargets) -> None:
        """student: [R, C] in the dtype of the products."""
        self.walk, self.student, self.targets = walk, student, targets
        self.logits = walk.softmax("student", len(student))
        self.target_logits: OnlineSoftmax | None = None
        if isinstance(targets, CentredTargets):
            self.n_samples, self.n_targets = targets.bottleneck.shape[:2]
            self.target_rows = targets.bottleneck.flatten(0, 1).to(walk.dtype)  # [B * T, C]
            self.target_weight = targets.weight.to(walk.dtype)
            self.target_bias = targets.center.flatten().float() / -targets.temp
            self.target_logits = walk.softmax("targets", len(self.target_rows))
        else:
            self.n_samples, self.n_targets = targets.probabilities.shape[:2]

    def first_walk(self, weights: Tensor) -> Tensor:
        """weights: [B, S, T]. Returns the weighted losses [B, S]."""
        temp = self.walk.student_temp
        dots = torch.zeros_like(weights)  # [B, S, T], P_t . y for each pair, up to the factors of P_t
        for number, block in enumerate(self.walk.blocks):
            exponentials = self._first_of_targets(number, block, dots)
            logits = self.logits.compute(number, self.student, self.walk.weight[block], scale=1 / temp)
            dots += _pair_products(logits.view(self.n_samples, -1, logits.shape[1]), exponentials)
            self.logits.take(number, logits)
        if self.target_logits is not None:
            dots /= self.target_logits.sums.view(self.n_samples, 1, -1)
        log_sum = self.logits.log_sum().view(self.n_samples, -1)
        return weights.sum(-1) * log_sum - (weights * dots).sum(-1)

    def second_walk(self, weights: Tensor, entropies: "_Entropies | None") -> Tensor:
        """weights: [B, S, T], scaled. Returns the gradient of the student's rows, [R, C] fp32, in units; adds the weight's."""
        walk = self.walk
        per_unit = weights / (walk.unit * walk.student_temp)
        row_weights = per_unit.sum(-1).flatten()  # [R]
        gradient = torch.zeros_like(self.student, dtype=torch.float32)
        for number, block in enumerate(walk.blocks):
            targets, factors = self._second_of_targets(number, block)
            if entropies is not None:
                entropies.add(block, targets * factors[..., None])
            on_logits = self.logits.take_back(number).mul_((row_weights * self.logits.factors(number))[:, None])
            _subtract_targets(
                on_logits.view(self.n_samples, -1, on_logits.shape[1]), per_unit * factors.unsqueeze(1), targets
            )
            on_logits = on_logits.to(walk.dtype)  # [R, k]
            _add_product(gradient, on_logits, walk.weight[block])
            if walk.weight_gradient is not None:
                _add_product(walk.weight_gradient[block], on_logits.t(), self.student)
        return gradient

    def _first_of_targets(self, number: int, block: slice, dots: Tensor) -> Tensor:
        """[B, T, k]: the targets, up to a factor a row. What `dots` has so far is brought to the same factors."""
        if isinstance(self.targets, StoredTargets):
            return self.targets.probabilities[..., block]
        assert self.target_logits is not None, "centred targets have logits"
        logits = self.target_logits.compute(
            number,
            self.target_rows,
            self.target_weight[block],
            scale=1 / self.targets.temp,
            bias=self.target_bias[block],
        )
        exponentials, shrink = self.target_logits.take(number, logits)
        dots *= shrink.view(self.n_samples, 1, -1)
        return exponentials.view(self.n_samples, self.n_targets, -1)

    def _second_of_targets(self, number: int, block: slice) -> tuple[Tensor, Tensor]:
        """[B, T, k] and [B, T], whose product are the targets."""
        if isinstance(self.targets, StoredTargets):
            probabilities = self.targets.probabilities[..., block]
            return probabilities, torch.ones_like(probabilities[..., 0])
        assert self.target_logits is not None, "centred targets have logits"
        exponentials = self.target_logits.take_back(number).view(self.n_samples, self.n_targets, -1)
        return exponentials, self.target_logits.factors(number).view(self.n_samples, -1)


class _Entropies:
    """The entropies of targets that come a block of prototypes at a time, and some samples after the others."""

    def __init__(self, n_prototypes: int, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._mean = torch.zeros(n_prototypes, device=device)
        self._n_rows = 0

    def add(self, block: slice, probabilities: Tensor) -> None:
        """probabilities: [B, T, k]."""
        self._sum += torch.special.entr(probabilities).sum()
        self._mean[block] += probabilities.sum((0, 1))
        if block.start == 0:
            self._n_rows += probabilities.shape[0] * probabilities.shape[1]

    def result(self) -> Tensor:
        """[2]: the mean entropy of a row, and the entropy of the mean row."""
        n_rows = max(self._n_rows, 1)
        return torch.stack([self._sum / n_rows, torch.special.entr(self._mean / n_rows).sum()])


def _samples_a_walk(term: LossTerm) -> Iterator[slice]:
    """Samples in equal parts, small enough that the exponentials kept between the walks need a bounded memory."""
    n_samples, n_rows, n_targets = term.weights.shape
    most = _ROWS_A_WALK.get(term.student.device.type, _ROWS_A_LONG_WALK) // max(n_rows, n_targets, 1)
    n_parts = -(-n_samples // max(most, 1))
    size = -(-n_samples // n_parts)
    for start in range(0, n_samples, size):
        yield slice(start, min(start + size, n_samples))


def _pair_products(logits: Tensor, targets: Tensor) -> Tensor:
    """[B, S, k] and [B, T, k] -> [B, S, T]."""
    return torch.bmm(logits, targets.transpose(1, 2))


def _subtract_targets(on_logits: Tensor, weights: Tensor, targets: Tensor) -> None:
    """on_logits [B, S, k] -= weights [B, S, T] @ targets [B, T, k]."""
    if targets.shape[1] == 1:  # a matrix product a row would cost more than the rows
        on_logits.addcmul_(weights, targets, value=-1)
    else:
        on_logits.baddbmm_(weights, targets, alpha=-1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b; fp32, whatever the dtype of the product."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total.add_(torch.mm(a, b))
