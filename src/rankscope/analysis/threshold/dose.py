"""The dose: the drift at which a share q of the gain over a constant answer is lost.

A plateau, a decline and a floor, y = p - d clip((u - t) / (f - t), 0, 1) with t, d >= 0 and f
inside the data, is fitted by least squares to the references near sr(W) and to all checkpoints
that drifted, once per resample of the trials. Letters: B draws, T trials, N checkpoints, F
floors tried beside one turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankscope.analysis.threshold.evidence import Array, Codes, Evidence

GRID = 40  # turns and floors tried over the range of drift


@dataclass(frozen=True)
class Fits:
    """The fitted line of each draw, all (B,): the first draw is the data themselves.

    ``near`` is the mean of the references (P0), ``anywhere`` the best attained (V). NaN or infinite
    where a draw has no reference.
    """

    plateau: Array
    fall: Array
    turn: Array
    floor: Array
    near: Array
    anywhere: Array

    def dose(self, lost: Array) -> Array:
        """The drift at which the line has fallen by `lost` (B,); infinite where it does not fall
        that far."""
        held = (self.fall > lost) & (lost > 0)
        share = np.divide(lost, self.fall, out=np.zeros_like(lost), where=held)
        return np.where(held, self.turn + (self.floor - self.turn) * share, np.inf)


def fits(found: Evidence, weights: Array) -> Fits:
    """The best line for each row of `weights` (B, T): how often each trial was drawn.

    The references are chosen anew in every draw.
    """
    near = found.near.choose(weights)
    rows = [
        (found.far_trial, found.far_u, found.far_y, weights),
        (np.arange(len(found.near.y)), found.near.u, found.near.y, near),
    ]
    count, total, squares = (
        np.sum(
            [w @ _summed(y[:, None] ** power, trial, w.shape[1]) for trial, _, y, w in rows], axis=0
        )
        for power in (0, 1, 2)
    )
    spread = squares - total**2 / np.maximum(count, 1)  # (B, 1)
    best = np.full(len(weights), np.inf)
    fitted = np.zeros((4, len(weights)))  # plateau, fall, turn, floor
    for turn, floors in _grid(found):
        x, xx, xy = (np.zeros((len(weights), len(floors))) for _ in range(3))
        for trial, u, y, w in rows:
            ramp = np.clip((u[:, None] - turn) / (floors - turn), 0, 1)  # (N, F)
            for into, column in ((x, ramp), (xx, ramp**2), (xy, ramp * y[:, None])):
                into += w @ _summed(column, trial, w.shape[1])
        mean = x / np.maximum(count, 1)
        variance = xx - x * mean
        known = variance > 1e-9 * np.maximum(count, 1)
        slope = np.divide(xy - mean * total, variance, out=np.zeros_like(x), where=known)
        slope = np.minimum(slope, 0.0)  # a decline only
        error = spread - 2 * slope * (xy - mean * total) + slope**2 * variance
        place = error.argmin(axis=1)
        draw = np.arange(len(weights))
        better = error[draw, place] < best
        best = np.where(better, error[draw, place], best)
        fall = -slope[draw, place]
        plateau = (total[:, 0] + fall * x[draw, place]) / np.maximum(count[:, 0], 1)
        new = np.stack([plateau, fall, np.full(len(weights), turn), floors[place]])
        fitted = np.where(better, new, fitted)
    anywhere = found.anywhere.mean(found.anywhere.choose(weights))
    plateau, fall, at, end = fitted
    return Fits(plateau, fall, at, end, near=found.near.mean(near), anywhere=anywhere)


def _summed(values: Array, trial: Codes, trials: int) -> Array:
    """Sums of `values` (N, F) over each trial's checkpoints: (T, F)."""
    sums = np.zeros((trials, values.shape[1]))
    np.add.at(sums, trial, values)
    return sums


def _grid(found: Evidence) -> list[tuple[float, Array]]:
    """Turns with the floors tried beside each; none lies outside the drifts that were measured."""
    top = found.reach
    step = top / GRID
    turns = np.linspace(0, top, GRID + 1)[:-2]
    if len(found.far_u):
        turns = np.union1d(turns, np.quantile(found.far_u, np.linspace(0.1, 0.9, 9)))
    floors = np.linspace(0, top, GRID + 1)[1:]
    pairs = [(float(turn), floors[floors - turn > step]) for turn in turns]
    return [(turn, own) for turn, own in pairs if len(own)]
