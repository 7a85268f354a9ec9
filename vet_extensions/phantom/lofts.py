"""Lofts: bodies given by their cross-section along the trunk, and where rays enter and leave them.

`trunk` makes skin, muscle wall, serosal cavity and collapsed lungs as lofts; `composition` measures rays through them. The section
at x is an ellipse whose upper and lower halves have their own heights: half width w(x), height up(x) above and down(x) below the
centre line z(x). There is no closed form for a ray through such a body, but at a given x there is one; the trunk changes
slowly along x and rays are nearly perpendicular to it, so a few rounds of solving at the x of the last hit are enough
(tests compare with ray marching).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vet_extensions.phantom.camera import Rays

X_FIRST, X_LAST, N_STATIONS = -0.9, 2.3, 1601
"""Stations of the tables, in trunk lengths: .002 apart, so that reading the nearest one is off by at most .2 mm in 215."""

STATIONS = np.linspace(X_FIRST, X_LAST, N_STATIONS)
AXIS_HEIGHT = -0.3
"""A height inside every section; the search starts where the ray passes it most closely."""

Interval = tuple[np.ndarray, np.ndarray]
"""Depths [H, W] at which each ray enters and leaves a convex body; it misses where leaving comes before entering."""


@lru_cache(maxsize=16)
def _hermite_basis(knots: tuple[float, ...]) -> np.ndarray:
    """[stations, knots]: cubic Hermite interpolation with finite-difference slopes, as a matrix on the knot values."""
    knot_x = np.array(knots)
    left = np.clip(np.searchsorted(knot_x, STATIONS) - 1, 0, len(knot_x) - 2)
    width = knot_x[left + 1] - knot_x[left]
    t = np.clip((STATIONS - knot_x[left]) / width, 0.0, 1.0)[:, None]
    unit = np.eye(len(knot_x))
    slope = np.gradient(unit, knot_x, axis=0)
    width = width[:, None]
    return (
        (1 + 2 * t) * (1 - t) ** 2 * unit[left]
        + t * (1 - t) ** 2 * width * slope[left]
        + t * t * (3 - 2 * t) * unit[left + 1]
        + t * t * (t - 1) * width * slope[left + 1]
    )


def profile(knots: tuple[float, ...], values: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """Smooth curve through (knots, values), read at every station: [N_STATIONS]."""
    return _hermite_basis(knots) @ np.asarray(values, dtype=float)


def at_x(table: np.ndarray, x: np.ndarray | float) -> np.ndarray:
    """A station table read at x (trunk lengths), linear between stations."""
    return np.asarray(np.interp(x, STATIONS, table))


@dataclass(frozen=True)
class Loft:
    """Station tables [N_STATIONS] in trunk lengths: centre line height, half width, height above and below it."""

    centre: np.ndarray
    half_width: np.ndarray
    above: np.ndarray
    below: np.ndarray


def loft_interval(loft: Loft, rays: Rays, *, unit_mm: float, n_rounds: int = 2) -> Interval:
    """Depths [H, W] at which the rays enter and leave a loft; equal where they miss it.

    unit_mm: millimetres per trunk length. Each round solves the half ellipse that the last solution hit, at the x where it hit.
    """
    centre = (loft.centre * unit_mm).astype(np.float32)
    inverse_width2 = ((loft.half_width * unit_mm) ** -2.0).astype(np.float32)
    # both halves in one table: below first, above behind it
    inverse_height2 = (np.concatenate([loft.below, loft.above]) * unit_mm).astype(np.float32) ** np.float32(-2.0)
    first, per_mm = np.float32(X_FIRST * unit_mm - 0.5 * _station_mm(unit_mm)), np.float32(1.0 / _station_mm(unit_mm))

    def station(depth: np.ndarray) -> np.ndarray:
        nearest = ((ax - first) + depth * dx) * per_mm
        return np.clip(nearest, 0, N_STATIONS - 1, out=nearest).astype(np.int32)

    (ax, ay, az), (dx, dy, dz) = rays.anchor, rays.direction
    dy2, dz2, ay_dy, ay2 = dy * dy, dz * dz, ay * dy, ay * ay
    height = az - np.float32(AXIS_HEIGHT * unit_mm)
    nearest_depth = -(ay_dy + height * dz) / (dy2 + dz2)
    middle = station(nearest_depth)
    typical_mm = np.float32(0.3 * unit_mm)
    ends = []
    for side in (-1.0, 1.0):
        where, depth = middle, nearest_depth + np.float32(side) * typical_mm
        for _ in range(n_rounds):
            z = az - centre[where]
            is_above = (z + depth * dz) > 0
            width2 = inverse_width2[where]
            height2 = inverse_height2[where + np.int32(N_STATIONS) * is_above]
            a = dy2 * width2 + dz2 * height2
            b = ay_dy * width2 + z * dz * height2
            c = ay2 * width2 + z * z * height2 - np.float32(1.0)
            root = np.sqrt(np.maximum(b * b - a * c, 0))
            depth = (root - b) / a if side > 0 else (-root - b) / a
            where = station(depth)
        ends.append(depth)
    return ends[0], ends[1]


def _station_mm(unit_mm: float) -> float:
    return (X_LAST - X_FIRST) / (N_STATIONS - 1) * unit_mm
