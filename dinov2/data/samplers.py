"""The order in which a run looks at its data set; made by `dinov2.data.loaders` from a `SamplerType`.

The first three samplers give the official orders, draw for draw; only their cost is different: nothing here walks through a whole
data set in Python before the first index comes, and indices become Python's own a block at a time. `SeededInfiniteSampler` is the
one to resume with: its order depends on nothing but (seed, epoch), and going forward costs nothing.
Everywhere `start` and `step` are the rank and the number of processes unless given, and an index is a position in the data set.
"""

import itertools
import warnings
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data.sampler import Sampler

from dinov2 import distributed
from dinov2.utils.errors import UserError

_WORD_LIMIT = 1 << 28
"""From this range on `torch.randint` takes two 32-bit words of the generator for one draw (ATen, uniform_int_from_to)."""

_DRAW_BLOCK = 1 << 16

_YIELD_BLOCK = 1 << 14
"""Indices that become Python's own at a time."""


class EpochSampler(Sampler):
    """One pass of `size` indices over a data set, which is repeated if it is smaller; `set_epoch` chooses another order."""

    def __init__(
        self,
        *,
        size: int,
        sample_count: int,
        shuffle: bool = False,
        seed: int = 0,
        start: int | None = None,
        step: int | None = None,
    ) -> None:
        self._size = size
        self._sample_count = _checked_sample_count(sample_count)
        self._shuffle = shuffle
        self._seed = seed
        self._start, self._step = _own_slice(start, step)
        self._epoch = 0

    def __iter__(self) -> Iterator[int]:
        n_passes = -(-self._size // self._sample_count)
        indices = np.tile(np.arange(self._sample_count), n_passes)  # [>= size]
        if self._shuffle:
            # Official: with seed s > 0 the first epoch (0) has seed 0 whatever s is.
            rng = np.random.default_rng(self._seed * self._epoch if self._seed != 0 else self._epoch)
            indices = rng.choice(indices, self._size, replace=False)
        yield from _in_blocks(indices[self._start : self._size : self._step])

    def __len__(self) -> int:
        return (self._size - self._start + self._step - 1) // self._step

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self._epoch = epoch


class InfiniteSampler(Sampler):
    """Endless passes; every rank follows the same stream of permutations and takes its own stride of each pass."""

    def __init__(
        self,
        *,
        sample_count: int,
        shuffle: bool = False,
        seed: int = 0,
        start: int | None = None,
        step: int | None = None,
        advance: int = 0,
    ) -> None:
        """advance: how many indices of this rank to skip; they are still drawn, which takes time."""
        self._start, self._step = _own_slice(start, step)
        self._sample_count = _checked_sample_count(sample_count, self._start + 1)
        self._shuffle = shuffle
        self._seed = seed
        self._advance = advance

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._passes(), self._advance, None)

    def _passes(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        draws = _BelowDraws(generator, self._sample_count)
        while True:
            order = self._permutation(draws) if self._shuffle else range(self._sample_count)
            yield from itertools.islice(order, self._start, None, self._step)

    def _permutation(self, draws: "_BelowDraws") -> Iterator[int]:
        """Fisher-Yates from the front, one draw an index, lazily; the generator runs on from pass to pass."""
        order = array("q", np.arange(self._sample_count, dtype=np.int64).tobytes())
        for i in range(self._sample_count):
            j = i + draws.below(self._sample_count - i)
            value = order[j]
            order[j] = order[i]
            yield value


class ShardedInfiniteSampler(Sampler):
    """Endless passes; each rank owns a fixed share of the data set and shuffles only that, anew for every pass."""

    def __init__(
        self,
        *,
        sample_count: int,
        shuffle: bool = False,
        seed: int = 0,
        start: int | None = None,
        step: int | None = None,
        advance: int = 0,
        use_new_shuffle_tensor_slice: bool = False,
        advance_by_rank: bool = False,
    ) -> None:
        """advance: how many indices to skip.

        use_new_shuffle_tensor_slice: shuffle the share with one `randperm` (another order than the old one).
        advance_by_rank: count `advance` in indices of this rank, so that the sampler yields the exact tail of the one without
        advance. False is official: it takes `advance // sample_count` for whole passes and skips only the rest, which is
        right for one process alone.
        """
        self._start, self._step = _own_slice(start, step)
        self._sample_count = _checked_sample_count(sample_count, self._step)
        self._shuffle = shuffle
        self._seed = seed
        self._advance = advance
        self._advance_by_rank = advance_by_rank
        self._shuffle_slice: Callable[[torch.Tensor, torch.Generator], np.ndarray] = (
            self._randperm_slice if use_new_shuffle_tensor_slice else self._inside_out_slice
        )

    def __iter__(self) -> Iterator[int]:
        pass_length = self._length_of_pass() if self._advance_by_rank else self._sample_count
        first_pass, skip = divmod(self._advance, pass_length)
        stream = self._shuffled(first_pass) if self._shuffle else self._in_order()
        yield from itertools.islice(stream, skip, None)

    def _length_of_pass(self) -> int:
        """Indices that this rank yields in one pass; unshuffled passes drop nothing."""
        return self._sample_count // self._step if self._shuffle else len(self._own_range())

    def _own_range(self) -> range:
        return range(self._start, self._sample_count, self._step)

    def _in_order(self) -> Iterator[int]:
        while True:
            yield from self._own_range()

    def _shuffled(self, first_pass: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        dtype = torch.int32 if self._sample_count <= 2**31 else torch.int64
        permutation = torch.randperm(self._sample_count, dtype=dtype, generator=generator)
        n_own = self._sample_count // self._step
        own = permutation[self._start :: self._step][:n_own]
        n_dropped = self._sample_count - n_own * self._step
        if n_dropped:
            warnings.warn(
                f"{n_dropped} of {self._sample_count} samples are never drawn: the data set does not divide by {self._step} "
                "processes.",
                stacklevel=2,
            )
        for pass_number in itertools.count(first_pass):
            generator.manual_seed(self._seed + self._start + (pass_number << 24))
            yield from _in_blocks(self._shuffle_slice(own, generator))

    @staticmethod
    def _inside_out_slice(own: torch.Tensor, generator: torch.Generator) -> np.ndarray:
        """Inside-out Fisher-Yates with one draw an element from the second on, as official."""
        return own.numpy()[_inside_out(_BelowDraws(generator, len(own)).below_each())]

    @staticmethod
    def _randperm_slice(own: torch.Tensor, generator: torch.Generator) -> np.ndarray:
        return own[torch.randperm(len(own), dtype=torch.int64, generator=generator)].numpy()


class PositionedIndex(int):
    """An index that also knows its place in the run, for data sets whose randomness derives from (seed, position).

    To everything else it is a plain `int`. `position` counts over all ranks: sample i of rank r of n has position i * n + r.
    """

    position: int

    def __new__(cls, index: int, position: int) -> "PositionedIndex":
        self = super().__new__(cls, index)
        self.position = position
        return self

    def __reduce__(self) -> tuple[type["PositionedIndex"], tuple[int, int]]:
        return PositionedIndex, (int(self), self.position)

    def __repr__(self) -> str:
        return f"PositionedIndex({int(self)}, position={self.position})"


class SeededInfiniteSampler(Sampler):
    """One endless stream of permutations that all ranks share, rank r of n taking positions r, r + n, r + 2n, ...

    The permutation of an epoch depends only on (seed, epoch), so the stream is the same for any number of processes and no sample
    is ever dropped. `advance` counts indices of this rank and costs no draws: a run resumed after k samples a rank yields
    exactly what it would have. Yields `PositionedIndex`.
    """

    def __init__(
        self,
        *,
        sample_count: int,
        shuffle: bool = False,
        seed: int = 0,
        start: int | None = None,
        step: int | None = None,
        advance: int = 0,
    ) -> None:
        self._sample_count = _checked_sample_count(sample_count)
        self._shuffle = shuffle
        self._seed = seed
        self._start, self._step = _own_slice(start, step)
        self._advance = advance

    def __iter__(self) -> Iterator[PositionedIndex]:
        first = self._start + self._advance * self._step
        for epoch in itertools.count(first // self._sample_count):
            epoch_start = epoch * self._sample_count
            # A stride longer than the data set may step over whole epochs.
            position = first + max(0, -(-(epoch_start - first) // self._step)) * self._step
            if position >= epoch_start + self._sample_count:
                continue
            order = self._order(epoch)
            positions = range(position, epoch_start + self._sample_count, self._step)
            yield from map(PositionedIndex, _in_blocks(order[position - epoch_start :: self._step]), positions)

    def _order(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._sample_count)
        return np.random.default_rng((self._seed, epoch)).permutation(self._sample_count)


class _BelowDraws:
    """`torch.randint(0, n, (1,), generator=generator)`, draw for draw, but fetched in blocks: 20 times faster.

    A draw below n < 2**28 is one 32-bit word of the generator modulo n. The generator runs ahead of the draws handed out.
    """

    def __init__(self, generator: torch.Generator, largest: int) -> None:
        """largest: the greatest n that will be asked for."""
        self._generator = generator
        self._largest = largest
        self._fits_word = largest < _WORD_LIMIT
        self._block_length = min(_DRAW_BLOCK, largest + largest % 2)
        self._words: Iterator[int] = iter(())

    def below(self, n: int) -> int:
        """A draw from 0 to n - 1."""
        if not self._fits_word:
            return int(torch.randint(0, n, (1,), generator=self._generator).item())
        word = next(self._words, None)
        if word is None:
            self._words = iter(self._next_words(self._block_length).tolist())
            word = next(self._words)
        return word % n

    def below_each(self) -> np.ndarray:
        """A draw below each of 1 to `largest`, in this order: [largest], int32 where that fits.

        The first is 0 and takes nothing from the generator.
        """
        if not self._fits_word:
            return np.array([0] + [self.below(n) for n in range(2, self._largest + 1)])
        draws = np.zeros(self._largest, dtype=np.uint32)
        np.remainder(
            self._next_words(self._largest)[: self._largest - 1],
            np.arange(2, self._largest + 1, dtype=np.uint32),
            out=draws[1:],
        )
        return draws.view(np.int32)

    def _next_words(self, n: int) -> np.ndarray:
        """The generator's next n 32-bit words, uint32; one more where n is odd."""
        pairs = torch.empty(-(-n // 2), dtype=torch.int64)
        pairs.random_(-(2**63), None, generator=self._generator)  # each entry: two words, the first one drawn on top
        halves = pairs.numpy().view(np.uint64)
        return np.stack([(halves >> np.uint64(32)).astype(np.uint32), halves.astype(np.uint32)], axis=1).ravel()


def _inside_out(draws: np.ndarray) -> np.ndarray:
    """Which value each place holds after an inside-out shuffle, [n] of the draws' type, without a loop over the places.

    draws: [n], draws[i] <= i. The shuffle is, step by step: place i takes what place draws[i] holds, and place draws[i] takes
    value i. So a place holds the value of the last step that drew it. A place that no step drew after its own still holds what it
    took in its own step: what the place drawn there held, which is the value of the latest step before that drew the same place,
    or, where there is none, what that place took in its own step; and so on. About half of the places end with each look back.
    """
    n, minus_one = len(draws), draws.dtype.type(-1)
    steps = np.arange(n, dtype=draws.dtype)
    value = np.full(n, minus_one)
    value[draws] = steps  # of several steps that drew a place the last one stays
    # Sorted by place, then step: equal draws stand side by side, in the order of their steps.
    by_place = draws.astype(np.int64)
    by_place <<= 32
    by_place |= steps
    by_place.sort()
    step = by_place.astype(np.uint32).view(np.int32) if draws.dtype == np.int32 else by_place & 0xFFFFFFFF
    by_place >>= 32
    earlier = np.flatnonzero(by_place[1:] == by_place[:-1])
    # The value that a place takes in its own step; -1: what the place drawn there took in its own.
    taken = np.full(n, minus_one)
    taken[step.take(earlier + 1)] = step.take(earlier)
    drew_itself = np.flatnonzero(draws == steps)
    taken[drew_itself] = drew_itself

    sought = np.flatnonzero(value < 0).astype(draws.dtype)
    at = sought  # the places whose own step decides, one for each that is sought
    while len(sought):
        found = taken.take(at)
        value[sought] = found
        open_ = np.flatnonzero(found < 0)
        sought, at = sought.take(open_), draws.take(at.take(open_))
    return value


def _in_blocks(indices: np.ndarray) -> Iterator[int]:
    """The numbers of an array as Python's own, which data sets are given, without making all of them first."""
    for start in range(0, len(indices), _YIELD_BLOCK):
        yield from indices[start : start + _YIELD_BLOCK].tolist()


def _own_slice(start: int | None, step: int | None) -> tuple[int, int]:
    return (
        distributed.get_global_rank() if start is None else start,
        distributed.get_global_size() if step is None else step,
    )


def _checked_sample_count(sample_count: int, least: int = 1) -> int:
    """Refuse a data set so small that a rank would search for its next index for ever."""
    if sample_count < least:
        raise UserError(
            f"The data set has {sample_count} samples, but every process needs one of its own: at least {least}. "
            "Check the data set's path and split, or start fewer processes."
        )
    return sample_count
