"""The random numbers of many samples at once, equal to those of `sample_rng(seed, position)` one by one.

A generator a sample costs more than all that is drawn from it: numpy's seeding is Python's slowest step here. The first outputs
of `np.random.default_rng((seed, position))` are computed for a whole array of positions instead: SeedSequence's mixing
(M. O'Neill, randutils) and PCG64 XSL-RR (M. O'Neill, HMC-CS-2014-0905), whose streams numpy keeps fixed (NEP 19). A test
holds every number to numpy's own. Used by `pairing.draw_pairs`.
"""

import numpy as np

_POOL = 4
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_L, _MIX_R = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_PCG_HIGH, _PCG_LOW = np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645)
_MASK_32, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)

MAX_POSITION = 2**32
"""Positions and seeds from here on take two words of entropy in numpy, and are not served."""


class _Hash:
    """SeedSequence's hash: the constant changes with each call and not with the data, so that arrays go through it at once."""

    def __init__(self, start: int, multiplier: int) -> None:
        self._constant, self._multiplier = start, multiplier

    def __call__(self, value: np.ndarray) -> np.ndarray:
        value = value ^ np.uint32(self._constant)
        self._constant = self._constant * self._multiplier & 0xFFFFFFFF
        value = value * np.uint32(self._constant)
        return value ^ (value >> np.uint32(16))


def first_words(seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint32 [n] twice: the first two 32-bit outputs of `default_rng((seed, position))`.

    seed and positions: from 0, below MAX_POSITION.
    """
    states = _seed_words(seed, positions)  # four uint64 [n]
    # pcg64_srandom: the increment is odd; the state takes a step before and after the initial state is added.
    inc_high = states[2] << np.uint64(1) | states[3] >> np.uint64(63)
    inc_low = states[3] << np.uint64(1) | np.uint64(1)
    high, low = _add(inc_high, inc_low, states[0], states[1])
    high, low = _step(high, low, inc_high, inc_low)
    high, low = _step(high, low, inc_high, inc_low)
    turn = high >> np.uint64(58)
    mixed = high ^ low
    out = mixed >> turn | mixed << (-turn & np.uint64(63))
    return (out & _MASK_32).astype(np.uint32), (out >> _32).astype(np.uint32)


def bounded(words: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers below n (>= 1) from 32 random bits each, and where numpy would have drawn again instead, bool.

    Lemire's method (arXiv 1805.10941), as `Generator.integers` uses for ranges below 2**32.
    """
    product = words.astype(np.uint64) * n.astype(np.uint64)
    threshold = (np.uint64(2**32) - n.astype(np.uint64)) % n.astype(np.uint64)
    return (product >> _32).astype(np.int64), (product & _MASK_32) < threshold


def _seed_words(seed: int, positions: np.ndarray) -> list[np.ndarray]:
    """`SeedSequence((seed, position)).generate_state(4, uint64)` for each position."""
    positions = np.asarray(positions).astype(np.uint32)
    zero = np.zeros_like(positions)
    hashed = _Hash(_INIT_A, _MULT_A)
    pool = [hashed(word) for word in (np.full_like(positions, seed), positions, zero, zero)]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                mixed = _MIX_L * pool[target] - _MIX_R * hashed(pool[source])
                pool[target] = mixed ^ (mixed >> np.uint32(16))
    hashed = _Hash(_INIT_B, _MULT_B)
    words = [hashed(pool[i % _POOL]).astype(np.uint64) for i in range(2 * _POOL)]
    return [words[2 * i] | words[2 * i + 1] << _32 for i in range(_POOL)]


def _step(
    high: np.ndarray, low: np.ndarray, inc_high: np.ndarray, inc_low: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """state * multiplier + increment, modulo 2**128."""
    product_high = _high_product(low, _PCG_LOW) + high * _PCG_LOW + low * _PCG_HIGH
    return _add(product_high, low * _PCG_LOW, inc_high, inc_low)


def _add(
    high: np.ndarray, low: np.ndarray, other_high: np.ndarray, other_low: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    total = low + other_low
    return high + other_high + (total < low).astype(np.uint64), total


def _high_product(a: np.ndarray, b: np.uint64) -> np.ndarray:
    """The upper 64 bits of the product of two 64-bit numbers."""
    a_high, a_low, b_high, b_low = a >> _32, a & _MASK_32, b >> _32, b & _MASK_32
    middle = a_high * b_low + (a_low * b_low >> _32)
    middle_low = (middle & _MASK_32) + a_low * b_high
    return a_high * b_high + (middle >> _32) + (middle_low >> _32)
