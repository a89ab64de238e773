"""The checkpoints of one model and task, arranged for resampling: references near sr(W), and all
that drifted.

Letters: B draws, T trials, L cells (configuration and rate), N checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.inference import Interval, normal
from rankscope.analysis.selection import ROUNDED

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

NEAR = float(np.log(1.1))  # |log drift| up to which a model counts as near sr(W)
DEEPEST = 0.25  # of the drifted checkpoints: where the loss is read
# degrees of freedom between seeds, to take their spread for the noise, and to take its median
FEWEST_REPETITIONS, ENOUGH_REPETITIONS = 4, 8
# median difference of two draws of a normal distribution, in its standard deviations
NORMAL_DIFFERENCE = float(np.sqrt(2) * normal.ppf(0.75))
IMAGINED = 400  # draws of the noise of several means
FLOOR_DEVIATIONS = 3  # below a constant answer, in standard deviations of an evaluation


@dataclass(frozen=True)
class Candidates:
    """One value per trial, from which each configuration's best rate is chosen by the mean over
    seeds.

    ``trial``, ``u``, ``y``, ``cell`` have one entry per trial that offers a value;
    ``configuration`` has one per cell, and ``complete`` says whether no other rate of its
    configuration has more seeds.
    """

    trial: Codes
    u: Array
    y: Array
    cell: Codes
    configuration: Codes
    complete: NDArray[np.bool_]

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """Which entries are of their configuration's best rate, by the mean over seeds; of equal
        ones the smallest."""
        cells = self._means[self.complete]
        best = cells["mean"].groupby(self.configuration[self.complete]).idxmax()
        return np.isin(self.cell, best)

    def excess(self, noise: float) -> float:
        """How much too high the mean of the chosen is expected to be, because each configuration's
        value is the best of several noisy means (`excess_of_best`)."""
        cells, spread = self._means, self.spread(noise)
        total = weight = 0.0
        for _, own in cells[self.complete].groupby(self.configuration[self.complete]):
            seeds = float(own["size"].iloc[0])
            total += seeds * excess_of_best(own["mean"].to_numpy(), spread / np.sqrt(seeds))
            weight += seeds
        return total / weight if weight else 0.0

    def spread(self, noise: float) -> float:
        """The standard deviation between seeds at one rate.

        Where there are enough repetitions it is taken from the median difference between two seeds,
        among rates in the better half of their configuration's range: a trial that failed says
        nothing about how the others scatter. With fewer, differences are pooled over all rates;
        with none to speak of it is `noise`, the standard deviation of an evaluation, which knows
        nothing of what sets one trial apart for good, so that it is then too small.
        """
        cells = self._means
        own = cells["mean"].groupby(self.configuration)
        good = np.flatnonzero(cells["mean"] >= (own.transform("min") + own.transform("max")) / 2)
        values = [self.y[self.cell == cell] for cell in good]
        if sum(len(y) - 1 for y in values) >= ENOUGH_REPETITIONS:
            apart = [np.abs(y[:, None] - y)[np.triu_indices(len(y), 1)] for y in values]
            return float(np.median(np.concatenate(apart))) / NORMAL_DIFFERENCE
        freedom = cells["size"] - 1
        if freedom.sum() < FEWEST_REPETITIONS:
            return float(np.nan_to_num(noise))
        return float(np.sqrt((freedom * cells["var"].fillna(0)).sum() / freedom.sum()))

    @property
    def _means(self) -> pd.DataFrame:
        """``mean``, ``var`` and ``size`` of each cell; means that differ by rounding are equal."""
        cells = pd.Series(self.y).groupby(self.cell).agg(["mean", "var", "size"])
        return cells.assign(mean=cells["mean"].round(ROUNDED))


@dataclass(frozen=True)
class Evidence:
    """``points``: checkpoints with ``u`` = max(0, sign * log_drift), ``y`` and ``trial_code``.

    ``y`` is the metric, held at three standard deviations below the constant answer: an unstable
    trial loses all of its gain and no more. ``strata`` are the trials' learning rates, as codes.
    ``floor`` is where y is held. ``near`` offers each trial's last evaluation near sr(W); ``far_*``
    are the checkpoints that drifted by more than a tenth.
    """

    points: pd.DataFrame
    sign: float
    trials: int
    strata: Codes
    floor: float
    near: Candidates
    far_trial: Codes
    far_u: Array
    far_y: Array

    @property
    def deep(self) -> float:
        """Where the deepest quarter of the drifted checkpoints begins, as a magnitude."""
        return float(np.quantile(self.far_u, 1 - DEEPEST)) if len(self.far_u) else np.nan

    @property
    def deepest(self) -> NDArray[np.bool_]:
        """Which of the drifted checkpoints are the deepest quarter."""
        return np.asarray(self.far_u >= self.deep, dtype=np.bool_)

    @property
    def reach(self) -> float:
        """The largest drift, as a magnitude."""
        return float(self.far_u.max(initial=0.0))

    def to_checkpoints(self, dose: Interval, share: float = 1.0) -> Interval:
        """`dose` with its finite ends moved out by a `share` of the way to the next drifted
        checkpoint, or to 0; all the way where no checkpoint lies between them.

        Between two checkpoints nothing was measured: where the line crosses a level there is its
        shape, which every resample shares, and not data. Left as they are, the ends would meet.
        """
        places = np.unique(np.append(0.0, self.far_u))
        low, high = dose.low, dose.high
        before, beyond = np.searchsorted(places, [low, high], side="right")
        share = 1.0 if before == beyond else share
        if np.isfinite(low):
            low = float(low + share * (places[max(0, before - 1)] - low))
        if np.isfinite(high):
            after = places[min(len(places) - 1, beyond)]
            high = float(high + share * (after - high))
        return replace(dose, low=low, high=high)


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
    far = points[points["u"] > NEAR]
    return Evidence(
        points=points,
        sign=sign,
        trials=int(points["trial_code"].nunique()),
        strata=pd.factorize(points.drop_duplicates("trial_code")["learning_rate"])[0],
        floor=floor,
        near=_candidates(near),
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
    )


def excess_of_best(means: Array, error: float) -> float:
    """The expected noise of the best of `means`, each with standard error `error`.

    The true means are taken to scatter as much as the observed ones scatter beyond noise
    (empirical Bayes: drawn in towards their mean); noise is added anew, and the winner's is
    averaged. About 1.2 `error` for five means that do not differ, 0 for means that differ by far.
    """
    if len(means) < 2:
        return 0.0
    scatter = float(means.var(ddof=1))
    kept = max(0.0, 1 - error**2 / scatter) if scatter > 0 else 0.0
    true = means.mean() + np.sqrt(kept) * (means - means.mean())
    noise = np.random.default_rng(0).normal(size=(IMAGINED, len(means)))
    noise = error * (noise - noise.mean(axis=0))
    return float(noise[np.arange(IMAGINED), (true + noise).argmax(axis=1)].mean())
