"""The nearest images of a bank by cosine similarity, exactly, in blocks of bounded memory. The protocols `knn`, `mlknn` and
`retrieval` call it.

Large banks are searched in 8-bit whole numbers, which processors with AVX-512 multiply four times as fast as float32, and what
may be among the nearest is compared again in float32. Each 8-bit similarity stands for an interval that holds the true one. The
bank is cut into groups of 32 rows; the k-th largest of the groups' best lower ends is a bound that k rows reach, so that only
rows whose upper end reaches it are candidates. An interval is six standard deviations of the rounding error to either side;
should one not hold a similarity that is compared again, its block of queries is searched in float32.

Shape legend: n queries, m bank rows, D feature width, b queries of a block, g groups of 32 bank rows, p pairs of row and query.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vet_extensions.errors import UserError

_QUERY_ROWS = 512
_BANK_ROWS = 131_072
"""Rows compared at once: 256 MiB of 4-byte similarities."""

_GROUP = 32
_CACHED_GROUPS = 8
"""Groups that are rounded at once: they stay in cache."""
_LEAST_ROWS, _LEAST_WIDTH, _LEAST_QUERIES = 16_384, 192, 256
"""Bank rows, feature width and queries from which the 8-bit search is worth its preparation."""
_DEVIATIONS = 6.0
_LARGEST = 127


class NeighbourBlock(NamedTuple):
    """The nearest bank rows of some queries. queries: which; similarity: [b, k] descending cosines; rows: [b, k] int64."""

    queries: slice
    similarity: Tensor
    rows: Tensor


class NeighbourSearch:
    """Finds the k bank rows of highest cosine similarity. The answer does not depend on blocks or on the way of searching,
    but where similarities differ by less than float32 can tell (about 1e-7)."""

    def __init__(
        self,
        bank: NDArray[np.floating] | Tensor,
        *,
        query_rows: int = _QUERY_ROWS,
        bank_rows: int = _BANK_ROWS,
        in_8_bit: bool | None = None,
    ) -> None:
        """bank: [m, D]; query_rows, bank_rows: compared at once, which bounds the memory (4 bytes a pair).

        in_8_bit: None for the faster way on this processor with this bank.
        """
        self._bank = _unit(bank)
        self._query_rows, self._bank_rows = query_rows, -(-bank_rows // _GROUP) * _GROUP
        self._in_8_bit = in_8_bit

    def blocks(self, queries: NDArray[np.floating] | Tensor, *, k: int) -> Iterator[NeighbourBlock]:
        """The k nearest of queries [n, D], a block of queries at a time."""
        if not 1 <= k <= len(self._bank):
            raise UserError(f"k must lie between 1 and the {len(self._bank)} images of the bank, got {k}.")
        unit = _unit(queries)
        coarse = self._coarse if self._is_worth_8_bits(len(unit), k=k) else None
        room = torch.empty(0 if coarse is None else self._pairs_at_once(len(unit)), dtype=torch.int32)
        for start in range(0, len(unit), self._query_rows):
            part = unit[start : start + self._query_rows]
            found = None if coarse is None else _search_in_8_bit(part, self._bank, coarse, k=k, room=room)
            similarity, rows = found or _search_in_float(part, self._bank, k=k, bank_rows=self._bank_rows)
            yield NeighbourBlock(slice(start, start + len(part)), similarity, rows)

    def all(self, queries: NDArray[np.floating] | Tensor, *, k: int) -> tuple[Tensor, Tensor]:
        """Similarities and rows of the k nearest, [n, k] each."""
        similarity, rows = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
        for block in self.blocks(queries, k=k):
            similarity[block.queries], rows[block.queries] = block.similarity, block.rows
        return similarity, rows

    @cached_property
    def _coarse(self) -> "_CoarseBank":
        return _CoarseBank.of(self._bank)

    def _is_worth_8_bits(self, n_queries: int, *, k: int) -> bool:
        n_rows, width = self._bank.shape
        if 4 * k > n_rows // _GROUP:  # too many of the groups would be candidates
            return False
        if self._in_8_bit is not None:
            return self._in_8_bit
        is_large = n_rows >= _LEAST_ROWS and width >= _LEAST_WIDTH and n_queries >= _LEAST_QUERIES
        return is_large and torch.backends.cpu.get_cpu_capability().startswith("AVX512")

    def _pairs_at_once(self, n_queries: int) -> int:
        n_rows = -(-len(self._bank) // _GROUP) * _GROUP
        return min(self._bank_rows, n_rows) * min(self._query_rows, n_queries)


@dataclass(frozen=True)
class _CoarseBank:
    """A bank less its mean, which changes no order, in 8 bits. codes: [32 g, D] int8; steps, norms: [g], the width of a step and
    the largest norm of a group; mean: [D]. The last row is repeated to fill its group, which leaves the group's best as it is."""

    codes: Tensor
    steps: Tensor
    norms: Tensor
    mean: Tensor

    @classmethod
    def of(cls, bank: Tensor) -> "_CoarseBank":
        """Of unit rows [m, D]."""
        n_groups = -(-len(bank) // _GROUP)
        mean = bank.mean(dim=0)
        codes = torch.empty(n_groups, _GROUP, bank.shape[1], dtype=torch.int8)
        steps, norms = torch.empty(n_groups), torch.empty(n_groups)
        for first in range(0, n_groups, _CACHED_GROUPS):
            groups = slice(first, min(first + _CACHED_GROUPS, n_groups))
            part = bank[groups.start * _GROUP : groups.stop * _GROUP] - mean
            n_absent = (groups.stop - groups.start) * _GROUP - len(part)
            by_group = torch.cat([part, part[-1:].expand(n_absent, -1)]) if n_absent else part
            by_group = by_group.view(-1, _GROUP, bank.shape[1])
            norms[groups] = by_group.norm(dim=2).amax(dim=1)
            largest = torch.maximum(by_group.amax(dim=2), -by_group.amin(dim=2)).amax(dim=1)
            steps[groups] = (largest / _LARGEST).clamp(min=1e-12)
            codes[groups] = (by_group / steps[groups, None, None]).round_().to(torch.int8)
        return cls(codes.flatten(0, 1), steps, norms, mean)

    def half_widths(self, groups: slice, query_steps: Tensor) -> Tensor:
        """Half the interval of each (query, group), [b, g]. A component's rounding error is spread evenly over a step; the bank's
        is weighted by a query, which has length 1, the query's by a bank row."""
        variance = torch.outer(query_steps.square(), self.norms[groups].square()).add_(self.steps[groups].square())
        return variance.sqrt_().mul_(_DEVIATIONS / 12**0.5)


class _Pairs(NamedTuple):
    """Candidates, by query. rows, query: [p]; middle, error: [p], the middle of the interval, less the query's product with the
    mean, and half its width."""

    rows: Tensor
    query: Tensor
    middle: Tensor
    error: Tensor

    def only(self, kept: Tensor) -> "_Pairs":
        return _Pairs(*(part[kept] for part in self))


def _unit(features: NDArray[np.floating] | Tensor) -> Tensor:
    """Rows of length 1, float32; what has them is not copied."""
    x = torch.as_tensor(features, dtype=torch.float32)
    norms = x.norm(dim=1, keepdim=True)
    return x if ((norms - 1).abs() < 5e-7).all() else x / norms.clamp(min=1e-12)


def _search_in_float(queries: Tensor, bank: Tensor, *, k: int, bank_rows: int) -> tuple[Tensor, Tensor]:
    """The k highest inner products of each query with the bank, and their rows: [b, k] each, descending."""
    values, rows = [], []
    for start in range(0, len(bank), bank_rows):
        similarity = queries @ bank[start : start + bank_rows].T
        top, place = similarity.topk(min(k, similarity.shape[1]), dim=1)
        values.append(top)
        rows.append(place + start)
    if len(values) == 1:
        return values[0], rows[0]
    best, place = torch.cat(values, dim=1).topk(k, dim=1)
    return best, torch.cat(rows, dim=1).gather(1, place)


def _search_in_8_bit(
    queries: Tensor, bank: Tensor, coarse: _CoarseBank, *, k: int, room: Tensor
) -> tuple[Tensor, Tensor] | None:
    """As `_search_in_float`; None where an interval turned out not to hold the similarity. room: int32, for the products of all
    queries with a block of the bank."""
    pairs = _candidates(queries, coarse, k=k, room=room)
    pairs = pairs.only(pairs.rows < len(bank)) if len(coarse.codes) > len(bank) else pairs
    exact = _similarities(queries, bank, pairs)
    offset = (queries @ coarse.mean)[pairs.query]
    if ((exact - offset - pairs.middle).abs() > pairs.error + 1e-6).any():
        return None
    counts = pairs.query.bincount(minlength=len(queries))
    place = torch.arange(len(exact)) - (counts.cumsum(0) - counts)[pairs.query]
    table = torch.full((len(queries), int(counts.max())), -torch.inf)
    table_rows = torch.zeros(table.shape, dtype=torch.int64)
    table[pairs.query, place], table_rows[pairs.query, place] = exact, pairs.rows
    best, place = table.topk(k, dim=1)
    return best, table_rows.gather(1, place)


def _candidates(queries: Tensor, coarse: _CoarseBank, *, k: int, room: Tensor) -> _Pairs:
    """All pairs whose similarity may be among the query's k highest."""
    n_queries, n_rows = len(queries), len(coarse.codes)
    block = room.numel() // (_GROUP * n_queries) * _GROUP
    query_steps = (queries.abs().amax(dim=1) / _LARGEST).clamp(min=1e-12)  # [b]
    codes = (queries / query_steps[:, None]).round_().to(torch.int8)
    best = torch.empty(n_queries, 0)  # [b, <= k], the highest lower ends so far, of different rows
    bound = torch.full((n_queries,), -torch.inf)
    parts: list[_Pairs] = []
    for start in range(0, n_rows, block):
        part = coarse.codes[start : start + block]
        products = room[: len(part) * n_queries].view(n_queries, -1)  # fresh memory would cost half of the product
        by_group = torch._int_mm(codes, part.T, out=products).view(n_queries, -1, _GROUP)
        groups = slice(start // _GROUP, (start + len(part)) // _GROUP)
        scale = torch.outer(query_steps, coarse.steps[groups])  # [b, g]
        error = coarse.half_widths(groups, query_steps)
        middle = by_group.amax(dim=2).float().mul_(scale)
        best = torch.cat([best, _merged(middle - error, k=k)], dim=1)
        if best.shape[1] >= k:
            best = best.topk(k, dim=1, sorted=False).values
            bound = best.amin(dim=1)
        wanted = (middle + error >= bound[:, None]).flatten().nonzero()[:, 0]  # [p'], places of (query, group)
        scale, error, query = scale.flatten()[wanted], error.flatten()[wanted], wanted // by_group.shape[1]
        least = ((bound[query] - error) / scale).clamp(min=-(2.0**30)).floor().int()
        found = by_group.flatten(0, 1).index_select(0, wanted)  # [p', 32]
        pair, place = (found >= least[:, None]).nonzero(as_tuple=True)  # [p]
        rows = start + (wanted % by_group.shape[1])[pair] * _GROUP + place
        parts.append(_Pairs(rows, query[pair], found[pair, place] * scale[pair], error[pair]))
    if len(parts) == 1:
        return parts[0]
    pairs = _Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))
    pairs = pairs.only(pairs.middle + pairs.error >= bound[pairs.query])
    return pairs.only(pairs.query.argsort(stable=True))


def _merged(lower: Tensor, *, k: int) -> Tensor:
    """The best lower ends [b, g] of fewer, larger groups, [b, g']: the k-th of some 4 k lies hardly lower and is found sooner."""
    n = max(1, lower.shape[1] // (4 * k))
    return lower[:, : lower.shape[1] // n * n].unflatten(1, (n, -1)).amax(dim=1)


def _similarities(queries: Tensor, bank: Tensor, pairs: _Pairs) -> Tensor:
    """Float32 similarities of the pairs, [p]."""
    order = pairs.rows.argsort(stable=True)  # the bank is then read once and in order
    begins = F.pad(pairs.rows.bincount(minlength=len(bank)).cumsum(0), (1, 0))
    size = (len(bank), len(queries))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        wanted = torch.sparse_csr_tensor(
            begins, pairs.query[order], torch.zeros(len(order)), size, check_invariants=False
        )
        sorted_by_row = torch.sparse.sampled_addmm(wanted, bank, queries.T, beta=0.0).values()
    return torch.empty_like(sorted_by_row).scatter_(0, order, sorted_by_row)
