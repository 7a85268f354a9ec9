"""The random numbers of many samples at once, equal to those of `sample_rng(seed, position)` one by one.

A generator a sample costs more than all that is drawn from it: numpy's seeding is Python's slowest step here. The first outputs
of `np.random.default_rng((seed, position))` are computed for a whole array of positions instead: SeedSequence's mixing
(M. O'Neill, randutils) and PCG64 XSL-RR (M. O'Neill, HMC-CS-2014-0905), whose streams numpy keeps fixed (NEP 19). A test
holds every number to numpy's own. Used by `pairing.draw_pairs`.
"""

from collections.abc import Sequence

import numpy as np

_POOL = 4
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_L, _MIX_R = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_PCG = 0x2360ED051FC65DA44385DF649FCCF645
_16, _MASK_32, _32 = np.uint32(16), np.uint64(0xFFFFFFFF), np.uint64(32)

MAX_POSITION = 2**32
"""Positions and seeds from here on take two words of entropy in numpy, and are not served."""


def _hash_constants(start: int, multiplier: int, calls: Sequence[int]) -> np.ndarray:
    """uint32 [2 (xor, multiplier), calls, 1] of some calls of SeedSequence's hash: they change with the call, not the data."""
    after = [[start * pow(multiplier, call + k, 2**32) % 2**32 for call in calls] for k in (0, 1)]
    return np.array(after, dtype=np.uint32)[..., None]


def _halves(numbers: Sequence[int]) -> np.ndarray:
    """uint64 [2, k, 1]: the high and the low 64 bits of k numbers below 2**128."""
    return np.array([[n >> 64 for n in numbers], [n & (2**64 - 1) for n in numbers]], dtype=np.uint64)[..., None]


_FILL = _hash_constants(_INIT_A, _MULT_A, range(_POOL))
_MIX = [
    _hash_constants(_INIT_A, _MULT_A, [_POOL + (_POOL - 1) * source + t - (t > source) for t in range(_POOL)])
    for source in range(_POOL)
]
"""One hash of each word of the pool for each other one, in this order; the entry of a word for itself is not used."""
_EXPAND = _hash_constants(_INIT_B, _MULT_B, range(2 * _POOL))
_FROM_START = _halves([_PCG**2 % 2**128, (_PCG**2 + _PCG + 1) % 2**128])
"""PCG's state at the first output is initial state * the first + increment * the second: see `first_words`."""


def first_words(seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint32 [n] twice: the first two 32-bit outputs of `default_rng((seed, position))`.

    seed and positions: from 0, below MAX_POSITION.
    """
    words = _seed_words(seed, positions)
    high, low = words[::2], words[1::2]  # [2 (initial state, stream), n] each
    # pcg64_srandom: the increment is odd; from increment + initial state, one step (* multiplier + increment) is taken in seeding
    # and another one before the first output. Together they are one linear map, whose two products are taken at once.
    high[1] = high[1] << np.uint64(1) | low[1] >> np.uint64(63)
    low[1] = low[1] << np.uint64(1) | np.uint64(1)
    product_high, product_low = _multiply(high, low, _FROM_START)
    low = product_low[0] + product_low[1]
    high = product_high[0] + product_high[1] + (low < product_low[0])
    turn = high >> np.uint64(58)
    mixed = high ^ low
    out = mixed >> turn | mixed << (-turn & np.uint64(63))
    return (out & _MASK_32).astype(np.uint32), (out >> _32).astype(np.uint32)


def bounded(words: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers below n (>= 1) from 32 random bits each, and where numpy would have drawn again instead, bool.

    Lemire's method (arXiv 1805.10941), as `Generator.integers` uses for ranges below 2**32.
    """
    n = n.astype(np.uint64)
    product = words * n
    threshold = (np.uint64(2**32) - n) % n
    return (product >> _32).astype(np.int64), (product & _MASK_32) < threshold


def _seed_words(seed: int, positions: np.ndarray) -> np.ndarray:
    """`SeedSequence((seed, position)).generate_state(4, uint64)` for each position, [4, n]."""
    entropy = np.zeros((_POOL, len(positions)), dtype=np.uint32)
    entropy[0], entropy[1] = seed, positions
    pool = _hash(entropy, _FILL)  # [4, n]
    for source, constants in enumerate(_MIX):
        mixed = _MIX_L * pool - _MIX_R * _hash(pool[source], constants)
        mixed ^= mixed >> _16
        mixed[source] = pool[source]
        pool = mixed
    words = _hash(np.concatenate([pool, pool]), _EXPAND).astype(np.uint64)  # [8, n]
    return words[::2] | words[1::2] << _32


def _hash(values: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """Several calls of SeedSequence's hash at once, [calls, n]: they do not depend on each other."""
    values = (values ^ constants[0]) * constants[1]
    values ^= values >> _16
    return values


def _multiply(high: np.ndarray, low: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """high and low 64 bits of the products with `factors` [2 (high, low), ...], modulo 2**128."""
    factor_high, factor_low = factors
    low_high, low_low = low >> _32, low & _MASK_32
    factor_low_high, factor_low_low = factor_low >> _32, factor_low & _MASK_32
    middle = low_high * factor_low_low + (low_low * factor_low_low >> _32)
    middle_low = (middle & _MASK_32) + low_low * factor_low_high
    carried = low_high * factor_low_high + (middle >> _32) + (middle_low >> _32)
    return carried + high * factor_low + low * factor_high, low * factor_low
