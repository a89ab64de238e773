"""How much is lost in the deepest drifts, and whether models near sr(W) do well at all."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd

from rankscope.analysis.distributions import student
from rankscope.analysis.inference import LEVEL, Interval, jackknife
from rankscope.analysis.threshold.dose import Fits
from rankscope.analysis.threshold.evidence import Evidence


def loss(data: Evidence, found: Fits, noise: float) -> Interval:
    """P0 less the mean of the deepest quarter. The variances of both are added, Student's degrees
    of freedom are Welch and Satterthwaite's. That of P0 is at least what the spread between seeds
    says: the draws all have the same references, which lie closer than others because they were
    chosen."""
    references, deepest = data.near.chosen, np.unique(data.far_trial[data.far_u >= data.deep])
    counts = np.array([references.sum(), len(deepest)])
    errors = np.array([np.nanstd(values[1:], ddof=1) for values in (found.near, found.deep)])
    errors[0] = max(errors[0], data.near.spread(noise) / np.sqrt(counts[0]))
    lost, error = float(found.near[0] - found.deep[0]), float(np.sqrt((errors**2).sum()))
    clusters = len(np.unique(data.far_trial))
    if not error > 0:
        return Interval(lost, np.nan, np.nan, "trial", clusters)
    degrees = error**4 / (errors**4 / np.maximum(1, counts - 1)).sum()
    reach = float(student.ppf((1 + LEVEL) / 2, degrees)) * error
    return Interval(lost, lost - reach, lost + reach, "trial", clusters)


def premise(near: pd.Series, best: pd.Series, constant: float) -> Interval:
    """Of the best gain, what is to be had near sr(W); means over configurations, each left out
    once."""
    both = pd.DataFrame({"near": near, "best": best}).dropna()

    def share(kept: list[Hashable]) -> float:
        at, top = (both.loc[kept] - constant).mean()[["near", "best"]]
        return float(at / top) if top > 0 else np.nan

    return jackknife(list(both.index), share, "configuration")
