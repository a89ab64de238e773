"""The checkpoints of one model and task, arranged for resampling: references near sr(W), and all
that drifted.

Letters: B draws, T trials, L cells (configuration and rate), N checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

NEAR = float(np.log(1.1))  # |log drift| up to which a model counts as near sr(W)
FLOOR_DEVIATIONS = 3  # below a constant answer, in standard deviations of an evaluation


@dataclass(frozen=True)
class Candidates:
    """One value per trial, from which each configuration's best rate is chosen by the mean over
    seeds.

    ``trial``, ``u``, ``y``, ``cell`` have one entry per trial that offers a value;
    ``configuration`` has one per cell, and ``complete`` says whether no other rate of its
    configuration has more seeds. ``names`` are the configurations' numbers in the points.
    """

    trial: Codes
    u: Array
    y: Array
    cell: Codes
    configuration: Codes
    complete: NDArray[np.bool_]
    names: Codes

    def choose(self, weights: Array) -> Array:
        """Weights (B, entries) of `weights` (B, T), zero for entries whose rate was not chosen in a
        draw."""
        own = weights[:, self.trial]
        cells = np.eye(len(self.configuration))[self.cell]  # (entries, L)
        count, total = own @ cells, (own * self.y) @ cells
        usable = (count > 0) & self.complete
        mean = np.where(usable, total / np.where(count > 0, count, 1), -np.inf)
        picked = np.zeros_like(usable)
        for number in range(self.configuration.max(initial=-1) + 1):
            columns = np.flatnonzero(self.configuration == number)
            best = columns[mean[:, columns].argmax(axis=1)]
            picked[np.arange(len(best)), best] = True
        return own * (picked & usable)[:, self.cell]

    def by_configuration(self, trials: int) -> pd.Series:
        """Mean of each configuration at its chosen rate, from all trials."""
        held = self.choose(np.ones((1, trials)))[0] > 0
        names = self.names[self.configuration[self.cell[held]]]
        return pd.Series(self.y[held]).groupby(names).mean()

    def mean(self, chosen: Array) -> Array:
        """Mean of the chosen values in each draw: (B,), NaN where a draw has none."""
        count = chosen.sum(axis=1)
        return np.divide(chosen @ self.y, count, out=np.full_like(count, np.nan), where=count > 0)


@dataclass(frozen=True)
class Evidence:
    """``points``: checkpoints with ``u`` = max(0, sign * log_drift), ``y`` and ``trial_code``.

    ``y`` is the metric, held at three standard deviations below the constant answer: an
    unstable trial loses all of its gain and no more. ``near`` and ``anywhere`` offer each
    trial's last evaluation near sr(W) and its best one; ``far_*`` are the checkpoints that
    drifted by more than a tenth.
    """

    points: pd.DataFrame
    sign: float
    trials: int
    near: Candidates
    anywhere: Candidates
    far_trial: Codes
    far_u: Array
    far_y: Array

    @property
    def reach(self) -> float:
        """The largest drift, as a magnitude."""
        return float(self.far_u.max(initial=0.0))


def evidence(points: pd.DataFrame, constant: float, noise: float) -> Evidence:
    """Arranges the `Frames.checkpoints` of one model and task; the direction is that of
    the larger squared drift."""
    drifts = points["log_drift"].to_numpy(dtype=float)
    sign = 1.0 if (drifts * np.abs(drifts)).sum() > 0 else -1.0
    floor = constant - FLOOR_DEVIATIONS * (noise if np.isfinite(noise) else 0.0)
    y = points["metric_value"].to_numpy(dtype=float)
    points = points.assign(
        u=np.maximum(0.0, sign * drifts),
        y=np.fmax(y, floor),
        trial_code=pd.factorize(points["trial"])[0],
        configuration=points.groupby(["rank", "scaling"], dropna=False).ngroup(),
    ).sort_values(["trial_code", "step"])
    near = points[np.abs(points["log_drift"]) <= NEAR].groupby("trial_code").tail(1)
    best = points.loc[points.groupby("trial_code")["y"].idxmax()]
    far = points[points["u"] > NEAR]
    return Evidence(
        points=points,
        sign=sign,
        trials=int(points["trial_code"].nunique()),
        near=_candidates(near),
        anywhere=_candidates(best),
        far_trial=far["trial_code"].to_numpy(),
        far_u=far["u"].to_numpy(),
        far_y=far["y"].to_numpy(),
    )


def _candidates(rows: pd.DataFrame) -> Candidates:
    grouped = rows.groupby(["configuration", "learning_rate"])
    cells = grouped.agg(seeds=("trial_code", "size")).reset_index()
    most = cells.groupby("configuration")["seeds"].transform("max")
    return Candidates(
        trial=rows["trial_code"].to_numpy(),
        u=rows["u"].to_numpy(),
        y=rows["y"].to_numpy(),
        cell=np.asarray(grouped.ngroup(), dtype=np.int64),
        configuration=pd.factorize(cells["configuration"])[0],
        complete=cells["seeds"].eq(most).to_numpy(),
        names=cells["configuration"].unique(),
    )
