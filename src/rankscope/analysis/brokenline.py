"""A plateau that turns into a decline: least squares over a grid of knots, for many resamples at once.

The curve is ``y(u) = p - a max(0, 1 - u / w) - d clip((u - t) / (f - t), 0, 1)`` with a, d >= 0: too little
training up to u = w, a plateau p, a decline from the threshold t, a floor from f on. Given the knots (w, t,
f) it is linear, and sums per cluster are all that a resample needs.

Letters: N observations, G clusters, R resamples, J knot triples (candidates).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST_TRIALS = 3  # on either side of a knot


@dataclass(frozen=True)
class Knots:
    """Candidates, (J,) each: ``rise`` w (0: none), ``turn`` t (0: from the start; inf: none), ``floor`` f."""

    rise: Array
    turn: Array
    floor: Array

    @property
    def flat(self) -> Mask:
        """Candidates without a decline."""
        return np.isinf(self.turn)

    @property
    def straight(self) -> Mask:
        """Candidates that decline from the start, without a rise: no plateau, so no threshold."""
        return self.turn == 0


@dataclass(frozen=True)
class Sums:
    """Sums per cluster of 1, rise, ramp and y multiplied with one another.

    ``xx`` (6, J, G) in the order 11, 1r, 1m, rr, rm, mm; ``xy`` (3, J, G) in the order 1, r, m; ``yy`` (G,).
    """

    xx: Array
    xy: Array
    yy: Array


@dataclass(frozen=True)
class Fits:
    """Every candidate in every resample, (J, R): squared error (inf where a < 0 or d < 0), p, a and d."""

    error: Array
    plateau: Array
    rise: Array
    drop: Array

    def best(self, among: Mask) -> tuple[NDArray[np.integer], Array]:
        """Index of the candidate with the least error, and that error, per resample: (R,) each."""
        error = np.where(among[:, None], self.error, np.inf)
        index = error.argmin(axis=0)
        return index, error[index, np.arange(error.shape[1])]


def candidates(u: Array, clusters: NDArray[np.integer]) -> Knots:
    """Knots to try for drifts `u` (N,) >= 0, spread over their range; `clusters` (N,) are 0 .. G - 1.

    At least three trials lie on either side of a threshold and beyond a floor. The rise ends before the
    threshold, and the decline takes a twentieth of the range at least.
    """
    top = float(u.max())
    turn = np.union1d(np.linspace(0, top, 26), np.quantile(u, np.linspace(0.1, 0.9, 9)))
    rise = np.append(0.0, np.quantile(u, [0.1, 0.25, 0.4, 0.6]))
    return _grid(u, clusters, rise, turn, np.linspace(0, top, 9))


def refined(u: Array, clusters: NDArray[np.integer], knots: Knots, at: NDArray[np.integer]) -> Knots:
    """A finer grid of thresholds and floors where the best candidates `at` (R,) of `knots` lie."""
    top = float(u.max())
    at = at[np.isfinite(knots.turn[at])]
    if not len(at):
        return knots
    grids = []
    for values, step, count in ((knots.turn[at], top / 25, 25), (knots.floor[at], top / 8, 15)):
        low, high = np.quantile(values, [0.005, 0.995])
        grids.append(np.linspace(max(0.0, low - step), min(top, high + step), count))
    return _grid(u, clusters, np.append(0.0, knots.rise[at]), grids[0], grids[1])


def _grid(u: Array, clusters: NDArray[np.integer], rise: Array, turn: Array, floor: Array) -> Knots:
    """The admissible triples of a grid, with a decline from the start and none at all beside them."""
    top = float(u.max())
    highest, lowest = np.zeros(int(clusters.max()) + 1), np.full(int(clusters.max()) + 1, np.inf)
    np.maximum.at(highest, clusters, u)
    np.minimum.at(lowest, clusters, u)
    beyond, before = np.sort(highest)[-FEWEST_TRIALS], np.sort(lowest)[FEWEST_TRIALS - 1]
    rise, floor = np.unique(rise), np.unique(np.append(floor, top))
    turn = np.append(0.0, np.unique(turn[(turn > before) & (turn < beyond)]))
    w, t, f = (a.ravel() for a in np.meshgrid(rise, turn, floor, indexing="ij"))
    kept = (f - t > top / 20) & (w <= t) & ((f == top) | (f < beyond))
    nowhere = np.full_like(rise, np.inf)
    return Knots(np.append(w[kept], rise), np.append(t[kept], nowhere), np.append(f[kept], nowhere))


def rise_basis(u: Array, rise: Array) -> Array:
    """max(0, 1 - u / w); zero where w = 0. Broadcasts."""
    there = rise > 0
    return np.where(there, np.maximum(0, 1 - u / np.where(there, rise, 1)), 0.0)


def ramp_basis(u: Array, turn: Array, floor: Array) -> Array:
    """clip((u - t) / (f - t), 0, 1); zero where t is infinite. Broadcasts."""
    there = np.isfinite(turn)
    start, end = np.where(there, turn, 0.0), np.where(there, floor, 1.0)
    return np.where(there, np.clip((u - start) / (end - start), 0, 1), 0.0)


def sums(u: Array, y: Array, clusters: NDArray[np.integer], knots: Knots) -> Sums:
    """Cluster sums for responses `y` (N,) at drifts `u` (N,); `clusters` (N,) are 0 ..

    G - 1 in ascending order.
    """
    starts = np.flatnonzero(np.diff(clusters, prepend=-1))

    def total(values: Array) -> Array:
        return np.add.reduceat(values, starts, axis=-1)

    shape = (len(knots.rise), len(starts))
    xx, xy = np.empty((6, *shape)), np.empty((3, *shape))
    xx[0], xy[0] = total(np.ones_like(u)), total(y)
    for width in np.unique(knots.rise):  # few: bounds the memory at (J / few) x N
        own = knots.rise == width
        rise = rise_basis(u, width)
        ramp = ramp_basis(u, knots.turn[own, None], knots.floor[own, None])
        xx[1, own], xx[2, own] = total(rise), total(ramp)
        xx[3, own], xx[4, own], xx[5, own] = total(rise * rise), total(rise * ramp), total(ramp * ramp)
        xy[1, own], xy[2, own] = total(rise * y), total(ramp * y)
    return Sums(xx, xy, total(y * y))


def resampled(parts: Sums, weights: Array) -> Fits:
    """Fits when cluster g counts `weights` (R, G) times: the cluster bootstrap."""
    return _solve(parts.xx @ weights.T, parts.xy @ weights.T, weights @ parts.yy)


def flipped(fitted: Sums, left: Sums, products: Array, signs: Array) -> Fits:
    """Fits to ``fitted + sign * left``, one of `signs` (R, G) per cluster: the wild bootstrap of a null model.

    `fitted` and `left` are `sums` of the null model's values and of its residuals, `products` (G,) those of
    the two with each other.
    """
    xx = fitted.xx.sum(axis=-1, keepdims=True)
    xy = fitted.xy.sum(axis=-1, keepdims=True) + left.xy @ signs.T
    return _solve(xx, xy, fitted.yy.sum() + left.yy.sum() + 2 * signs @ products)


def _solve(xx: Array, xy: Array, yy: Array) -> Fits:
    """Least squares for every candidate: `xx` (6, J, R or 1), `xy` (3, J, R), `yy` (R,)."""
    n, r, m, rr, rm, mm = xx
    y, ry, my = xy
    rr, rm, mm = rr - r * r / n, rm - r * m / n, mm - m * m / n
    ry, my, spread = ry - r * y / n, my - m * y / n, yy - y * y / n
    tiny = 1e-10 * n
    has_rise, has_ramp = rr > tiny, mm > tiny
    det = rr * mm - rm * rm
    both = has_rise & has_ramp & (det > 1e-8 * rr * mm)
    safe_det, safe_rr, safe_mm = np.where(both, det, 1), np.where(has_rise, rr, 1), np.where(has_ramp, mm, 1)
    rise = np.where(both, (ry * mm - my * rm) / safe_det, np.where(has_rise & ~has_ramp, ry / safe_rr, 0.0))
    ramp = np.where(both, (my * rr - ry * rm) / safe_det, np.where(has_ramp & ~has_rise, my / safe_mm, 0.0))
    error = np.maximum(spread - rise * ry - ramp * my, 1e-15 * (1 + yy))
    wrong = (rise > 0) | (ramp > 0) | (has_rise & has_ramp & ~both)
    return Fits(np.where(wrong, np.inf, error), (y - rise * r - ramp * m) / n, -rise, -ramp)
