"""The dose: the drift at which a share q of the gain over a constant answer is lost.

A plateau, a decline and a floor, y = p - d clip((u - t) / (f - t), 0, 1) with t, d >= 0 and f
inside the data, is fitted by least squares to the references near sr(W) and to all checkpoints
that drifted, once per resample of the trials. Where no checkpoint lies, several lines are equally
good: then it is the one that falls over the longest way, since no steeper one is shown. Letters: B
draws, T trials, N checkpoints, L lines, F floors tried beside one turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankscope.analysis.threshold.evidence import Array, Codes, Evidence

GRID = 40  # turns and floors tried over the range of drift
# of the squares about the mean: errors that differ by less count as equal, so that no rounding
# (numbers of a checkpoint saved in float32 differ by 1e-7) chooses between equally good lines
TIE = 1e-6
ROUNDING = 1e-12  # of the sum of squares
ERROR, TURN, FLOOR = 0, 2, 3  # places in a line, as _search returns it


@dataclass(frozen=True)
class Fits:
    """The fitted line of each draw, all (B,): the first draw is the data themselves.

    ``near`` is the mean of the references (P0), ``deep`` that of the deepest quarter of the drifted
    checkpoints. NaN or infinite where a draw has none.
    """

    plateau: Array
    fall: Array
    turn: Array
    floor: Array
    near: Array
    deep: Array

    def dose(self, level: Array) -> Array:
        """The drift at which the line has fallen to `level` (B,): 0 where it begins below, infinite
        where it ends above, NaN for a level that is not known."""
        held = (self.fall > 0) & (self.plateau - self.fall < level)
        lost = np.maximum(0.0, self.plateau - level)
        share = np.divide(lost, self.fall, out=np.zeros_like(lost), where=held)
        inside = np.where(held, self.turn + (self.floor - self.turn) * share, np.inf)
        return np.where(np.isnan(level), np.nan, np.where(self.plateau < level, 0.0, inside))


def fits(found: Evidence, weights: Array, excess: float = 0.0) -> Fits:
    """The best line for each row of `weights` (B, T): how often each trial was drawn.

    The references are those of the rates chosen once, from all trials: a draw that misses the only
    trial at the best rate would else take a rate that learnt less, as if the grid were poorer. They
    stand lower by `excess`, which choosing the best has added to them. A coarse grid of turns and
    floors is searched in every draw, then a finer one around the best of all data.
    """
    chosen = found.near.chosen
    references = found.near.y[chosen] - excess
    parts = [
        _Part.of(weights, found.far_trial, found.far_u, found.far_y),
        _Part.of(weights, found.near.trial[chosen], found.near.u[chosen], references),
    ]
    coarse = _search(parts, _coarse(found), len(weights))
    finer = _finer(found, turn=coarse[TURN, 0], floor=coarse[FLOOR, 0])
    fine = _search(parts, finer, len(weights)) if finer else coarse
    _, plateau, turn, floor, fall = _best(np.stack([coarse, fine]), _tie(parts))
    near = _mean(weights[:, found.near.trial[chosen]], references)
    deep = _mean(weights[:, found.far_trial] * found.deepest, found.far_y)
    return Fits(plateau, fall, turn, floor, near=near, deep=deep)


@dataclass(frozen=True)
class _Part:
    """Checkpoints ``u``, ``y`` (N,), the trial of each as a matrix of ones (T, N), and weights (B,
    T)."""

    weights: Array
    member: Array
    u: Array
    y: Array

    @classmethod
    def of(cls, weights: Array, trial: Codes, u: Array, y: Array) -> _Part:
        return cls(weights, np.equal(np.arange(weights.shape[1])[:, None], trial) * 1.0, u, y)

    def sums(self, column: Array) -> Array:
        """Weighted sums of `column` (N, F) in each draw: (B, F)."""
        return self.weights @ (self.member @ column)


def _totals(parts: list[_Part]) -> list[Array]:
    """Weighted sums of y^0, y^1 and y^2 in each draw: (B, 1) each."""
    return [
        np.sum([part.sums(part.y[:, None] ** power) for part in parts], axis=0)
        for power in (0, 1, 2)
    ]


def _tie(parts: list[_Part]) -> Array:
    """How far the errors of equally good lines may lie apart in each draw: (B,). Of equal values
    the squares about the mean are themselves rounding."""
    count, total, squares = _totals(parts)
    about = np.maximum(0.0, squares - total**2 / np.maximum(count, 1))
    return (TIE * about + ROUNDING * squares)[:, 0]


def _search(parts: list[_Part], grid: list[tuple[float, Array]], draws: int) -> Array:
    """Least squares over the `grid`: error, plateau, turn, floor, fall of the best line: (5, B)."""
    count, total, squares = _totals(parts)
    count, tie = np.maximum(count, 1), _tie(parts)
    lines = []
    row = np.arange(draws)
    for turn, floors in grid:
        x, xx, xy = (np.zeros((draws, len(floors))) for _ in range(3))
        for part in parts:
            ramp = np.clip((part.u[:, None] - turn) / (floors - turn), 0, 1)  # (N, F)
            x += part.sums(ramp)
            xx += part.sums(ramp**2)
            xy += part.sums(ramp * part.y[:, None])
        mean = x / count
        variance, covariance = xx - x * mean, xy - mean * total
        known = variance > 1e-9 * count
        slope = np.divide(covariance, variance, out=np.zeros_like(x), where=known)
        gained = slope * covariance  # squares that no flat line explains
        slope = np.where((slope < 0) & (gained > tie[:, None]), slope, 0.0)  # a decline only
        error = squares - total**2 / count - 2 * slope * covariance + slope**2 * variance
        equal = error <= error.min(axis=1, keepdims=True) + tie[:, None]
        place = len(floors) - 1 - equal[:, ::-1].argmax(axis=1)  # the last: the longest way
        fall = -slope[row, place]
        plateau = (total[:, 0] + fall * x[row, place]) / count[:, 0]
        lines.append([error[row, place], plateau, np.full(draws, turn), floors[place], fall])
    return _best(np.array(lines), tie)


def _best(lines: Array, tie: Array) -> Array:
    """Of `lines` (L, 5, B) the best of each draw (5, B); of equally good ones that which falls over
    the longest way, of equally long ones the first."""
    equal = lines[:, ERROR] <= lines[:, ERROR].min(axis=0) + tie
    way = np.where(equal, lines[:, FLOOR] - lines[:, TURN], -np.inf)
    place = (way >= way.max(axis=0) * (1 - TIE)).argmax(axis=0)
    return np.take_along_axis(lines, place[None, None, :], axis=0)[0]


def _coarse(found: Evidence) -> list[tuple[float, Array]]:
    """Turns with the floors tried beside each; none lies outside the drifts that were measured."""
    top = found.reach
    turns = np.linspace(0, top, GRID + 1)[:-2]
    turns = np.union1d(turns, np.quantile(found.far_u, np.linspace(0.1, 0.9, 9)))
    return _pairs(turns, np.linspace(0, top, GRID + 1)[1:], top / GRID)


def _finer(found: Evidence, turn: float, floor: float) -> list[tuple[float, Array]]:
    """The same between the neighbours of one turn and floor, in steps of a sixth."""
    top = found.reach
    near = np.linspace(-1, 1, 13) * top / GRID
    turns, floors = (np.unique(np.clip(at + near, 0, top)) for at in (turn, floor))
    return _pairs(turns, floors, top / GRID)


def _pairs(turns: Array, floors: Array, least: float) -> list[tuple[float, Array]]:
    """Each turn with the floors further than `least` beyond it, whichever way that is rounded."""
    pairs = [(float(turn), floors[floors - turn > (1 + TIE) * least]) for turn in turns]
    return [(turn, own) for turn, own in pairs if len(own)]


def _mean(weights: Array, y: Array) -> Array:
    """Mean of `y` in each draw: (B,), NaN where a draw has none."""
    count = weights.sum(axis=1)
    return np.divide(weights @ y, count, out=np.full_like(count, np.nan), where=count > 0)
