"""Candidates for a broken line: rises, thresholds and floors worth trying, given what three trials can show.

Letters: N observations, G clusters, W rises, P pairs of turn and floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST_TRIALS = 3  # on either side of a knot
NO_RISE = (-np.inf, -np.inf)  # learnt at any size


@dataclass(frozen=True)
class Knots:
    """Candidates: every ``rise`` (v, w) (W, 2; the first one is `NO_RISE`) with every pair of ``turn`` t and ``floor`` f (P,).

    t = 0 declines from the start, t = inf (the last pair) not at all. ``first`` (W,): the least drift at which
    a plateau can end, see `_plateau`.
    """

    rise: Array
    turn: Array
    floor: Array
    first: Array

    @property
    def allowed(self) -> Mask:
        """Candidates with a plateau that three trials have stood on, or without one: (W, P)."""
        return (self.first[:, None] < self.turn) | (self.turn == 0)

    @property
    def flat(self) -> Mask:
        """Candidates without a decline: (W, P)."""
        return np.isinf(self.turn) & self.allowed

    @property
    def straight(self) -> Mask:
        """Candidates that decline from the start, or not at all: no plateau, so no threshold. (W, P)"""
        return ((self.turn == 0) | np.isinf(self.turn)) & self.allowed

    @property
    def unlearnt(self) -> Mask:
        """Candidates without a rise: (W, P)."""
        return (self.rise[:, 1] == NO_RISE[1])[:, None] & self.allowed

    def turning_at(self, turn: float) -> Mask:
        """Candidates with this threshold; without a decline, too, which is theirs with d = 0. (W, P)"""
        return ((self.turn == turn) & self.allowed) | self.flat


def candidates(
    u: Array, clusters: NDArray[np.integer], *, x: Array | None = None, floors: Array | None = None
) -> Knots:
    """Knots to try for drifts `u` (N,) >= 0, spread over their range; with log sizes `x` (N,) rises, too.

    `clusters` (N,) are 0 .. G - 1. At least three trials lie on either side of a threshold, beyond a floor and past a rise.
    The decline takes a twentieth of the range at least. `floors` are tried as well.
    """
    top = float(u.max())
    turn = np.union1d(np.linspace(0, top, 26), np.quantile(u, np.linspace(0.1, 0.9, 9)))
    floor = np.append(np.linspace(0, top, 9), [] if floors is None else floors)
    return _grid(u, clusters, turn, floor, x)


def straight(u: Array, clusters: NDArray[np.integer]) -> Knots:
    """Declines from the start, to floors that lie close to each other."""
    return _grid(u, clusters, np.empty(0), np.linspace(0, float(u.max()), 121))


def refined(u: Array, clusters: NDArray[np.integer], knots: Knots, kept: Mask) -> Knots:
    """A finer grid over the candidates `kept` (W, P) of `knots`, two steps of that grid beyond them.

    Two, because t and f lean on each other: where one of them settles, the other moves on.
    """
    pairs = kept.any(axis=0) & (knots.turn > 0) & np.isfinite(knots.turn)
    top = float(u.max())
    turn = _finer(knots.turn[(knots.turn > 0) & np.isfinite(knots.turn)], knots.turn[pairs], 25, top)
    floor = _finer(knots.floor[np.isfinite(knots.floor)], knots.floor[pairs], 13, top)
    return _grid(u, clusters, turn, floor)


def with_rises(u: Array, clusters: NDArray[np.integer], x: Array, knots: Knots, rises: Array) -> Knots:
    """The same thresholds and floors with other `rises` (., 2) in `x`."""
    turn, floor = (k[np.isfinite(k)] for k in (knots.turn, knots.floor))
    return _grid(u, clusters, turn, floor, x, rises)


def all_rises(x: Array) -> Array:
    """Pairs (v, w) of any two of many quantiles of `x`: (., 2)."""
    at = np.unique(np.quantile(x[np.isfinite(x)], np.linspace(0.04, 0.84, 17)))
    return np.array([(v, w) for v in at for w in at if v < w]).reshape(-1, 2)


def _rises(x: Array) -> Array:
    """Pairs (v, w) of neighbouring quantiles of `x`, and of those two apart."""
    at = np.unique(np.quantile(x[np.isfinite(x)], [0.05, 0.2, 0.35, 0.5, 0.65, 0.8]))
    return np.concatenate([np.stack([at[:-k], at[k:]], axis=1) for k in (1, 2)])


def _finer(values: Array, kept: Array, count: int, top: float) -> Array:
    """`count` places from two steps of `values` below `kept` to two above, inside (0, top]."""
    if not len(kept):
        return kept
    steps = np.diff(np.unique(values))
    reach = 2 * float(np.median(steps)) if len(steps) else 0.25 * top
    return np.linspace(max(kept.min() - reach, kept.min() / 4), min(kept.max() + reach, top), count)


def _grid(
    u: Array,
    clusters: NDArray[np.integer],
    turn: Array,
    floor: Array,
    x: Array | None = None,
    rises: Array | None = None,
) -> Knots:
    """The admissible pairs of a grid, with no rise, a decline from the start and none at all beside them."""
    top = float(u.max())
    highest = np.zeros(int(clusters.max()) + 1)
    np.maximum.at(highest, clusters, u)
    beyond = np.sort(highest)[-FEWEST_TRIALS]
    sizes = np.zeros_like(u) if x is None else x
    rise = np.array([NO_RISE])
    if x is not None:
        rise = np.concatenate([rise, _rises(x) if rises is None else rises])
    first = np.array([_plateau(u, sizes >= w, clusters) for w in rise[:, 1]])
    rise, first = rise[np.isfinite(first)], first[np.isfinite(first)]
    floor = np.unique(np.append(floor, top))
    turn = np.append(0.0, np.unique(turn[(turn > first.min()) & (turn < beyond)]))
    t, f = (a.ravel() for a in np.meshgrid(turn, floor, indexing="ij"))
    kept = (f - t > top / 20) & ((f == top) | (f < beyond))
    return Knots(rise, np.append(t[kept], np.inf), np.append(f[kept], np.inf), first)


def _plateau(u: Array, learnt: Mask, clusters: NDArray[np.integer]) -> float:
    """The least drift at which three trials have `learnt` (N,), and past which two at most still learn; inf where fewer have."""
    lowest, highest = np.full(int(clusters.max()) + 1, np.inf), np.zeros(int(clusters.max()) + 1)
    np.minimum.at(lowest, clusters[learnt], u[learnt])
    np.maximum.at(highest, clusters[~learnt], u[~learnt])
    return float(max(np.sort(lowest)[FEWEST_TRIALS - 1], np.sort(highest)[-FEWEST_TRIALS]))
