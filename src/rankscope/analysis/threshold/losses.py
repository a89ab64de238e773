"""Losses with drift, read three ways: the mean of the deepest drifts less that near sr(W); the best
attained beyond a drift, paired by configuration; and brackets, the two visited drifts between which
each configuration and seed lost a share of the gain."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd

from rankscope.analysis.inference import (
    LEVEL,
    Interval,
    jackknife,
    normal,
    student,
)
from rankscope.analysis.threshold.dose import Fits
from rankscope.analysis.threshold.evidence import NEAR, Array, Codes, Evidence

UNSEEN = 0.5  # evaluations that lost everything, added to the deepest for the loss's upper end


def loss(data: Evidence, found: Fits, noise: float) -> Interval:
    """P0 less the mean of the deepest quarter. The variances of both are added, Student's degrees
    of freedom are Welch and Satterthwaite's. That of P0 is at least what the spread between seeds
    says: the draws all have the same references, which lie closer than others because they were
    chosen.

    For the upper end half an evaluation that lost everything is added to the deepest (as Jeffreys'
    prior adds half a case to a proportion): models that fail rarely may not have been drawn, and
    then neither the mean nor its spread knows of them (docs/results/calibration).
    """
    references, deepest = data.near.chosen, np.unique(data.far_trial[data.deepest])
    counts = np.array([references.sum(), len(deepest)])
    errors = np.array([np.nanstd(values[1:], ddof=1) for values in (found.near, found.deep)])
    errors[0] = max(errors[0], data.near.spread(noise) / np.sqrt(counts[0]))
    lost = float(found.near[0] - found.deep[0])
    clusters = len(np.unique(data.far_trial))
    if not errors.any():
        return Interval(lost, np.nan, np.nan, "trial", clusters)
    share = UNSEEN / (UNSEEN + data.deepest.sum())
    unseen = share * float(found.deep[0] - data.floor)
    more = np.array([errors[0], np.hypot(errors[1] * (1 - share), unseen * (1 - share))])
    low, high = lost - _reach(errors, counts), lost + unseen + _reach(more, counts)
    return Interval(lost, low, high, "trial", clusters)


def _reach(errors: Array, counts: Codes) -> float:
    """Half of a 95 % interval for a difference of two means with these standard errors."""
    error = float(np.sqrt((errors**2).sum()))
    degrees = error**4 / (errors**4 / np.maximum(1, counts - 1)).sum()
    return float(student.ppf((1 + LEVEL) / 2, degrees)) * error


def premise(near: pd.Series, best: pd.Series, constant: float) -> Interval:
    """The share of the best gain that is reached near sr(W); means over configurations, with a
    jackknife over them."""
    both = pd.DataFrame({"near": near, "best": best}).dropna()

    def share(kept: list[Hashable]) -> float:
        at, top = (both.loc[kept] - constant).mean()[["near", "best"]]
        return float(at / top) if top > 0 else np.nan

    return jackknife(list(both.index), share, "configuration")


# where sr falls; their inverses where it rises
RATIOS = (0.9, 0.75, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.05)


def attained(found: Evidence) -> pd.DataFrame:
    """One row per ratio c: ``near``, ``beyond`` (means over configurations), ``loss`` = near -
    beyond with its Student interval ``low``, ``high`` over ``configurations``, and ``p`` of no
    loss.

    For each configuration and side the rate is chosen by the mean over seeds of the trials' best
    evaluation there. Both sides are best values, so neither has an advantage by selection alone.
    """
    near = best_by_configuration(found.points[found.points["log_drift"].abs().le(NEAR)])
    rows = []
    for ratio in RATIOS:
        beyond = best_by_configuration(found.points[found.points["u"].gt(-np.log(ratio))])
        both = pd.concat([near, beyond], axis=1, keys=["near", "beyond"]).dropna()
        change = both["near"] - both["beyond"]
        count = len(change)
        error = change.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
        reach = student.ppf((1 + LEVEL) / 2, count - 1) * error if count > 1 else np.nan
        p = (
            2 * student.sf(abs(change.mean()) / error, count - 1)
            if count > 1 and error > 0
            else np.nan
        )
        rows.append(
            {
                "ratio": ratio if found.sign < 0 else 1 / ratio,
                "configurations": count,
                "near": both["near"].mean(),
                "beyond": both["beyond"].mean(),
                "loss": change.mean(),
                "low": change.mean() - reach,
                "high": change.mean() + reach,
                "p": float(p),
            }
        )
    return pd.DataFrame(rows)


def best_by_configuration(points: pd.DataFrame) -> pd.Series:
    """Per configuration, the best mean over seeds of any rate that no other rate outnumbers in
    seeds."""
    tops = points.groupby(["configuration", "learning_rate", "trial_code"])["y"].max()
    rates = tops.groupby(["configuration", "learning_rate"]).agg(["mean", "size"])
    most = rates.groupby("configuration")["size"].transform("max")
    return rates.loc[rates["size"].eq(most), "mean"].groupby("configuration").max()


FEWEST = 3
MEANS, SPREADS = 241, 40  # points of the grid over mu and omega


def brackets(found: Evidence, constant: float, best: float, share: float) -> pd.DataFrame:
    """One row per configuration and seed that reached the level c0 + (1 - q)(V - c0) and drifted.

    Columns: ``rank``, ``scaling``, ``seed``, ``last`` (the largest drift u at which the
    level was held, over all rates) and ``next`` (the next larger drift that was
    visited; infinite if there is none).
    """
    level = constant + (1 - share) * (best - constant)
    rows = []
    for (rank, scaling, seed), part in found.points.groupby(
        ["rank", "scaling", "seed"], dropna=False
    ):
        held = part.loc[part["y"].ge(level), "u"]
        if held.empty or part["u"].max() <= NEAR:
            continue
        last = float(held.max())
        later = part.loc[part["u"].gt(max(last, NEAR)), "u"]
        rows.append((rank, scaling, seed, last, float(later.min()) if len(later) else np.inf))
    return pd.DataFrame(rows, columns=["rank", "scaling", "seed", "last", "next"])


def tolerated(pairs: pd.DataFrame) -> tuple[Interval, float]:
    """mu with its 95 % profile-likelihood interval, and omega. Unknown for fewer than three
    pairs."""
    count = len(pairs)
    last, after = pairs["last"].to_numpy(dtype=float), pairs["next"].to_numpy(dtype=float)
    closed = after[np.isfinite(after)]
    if count < FEWEST or len(closed) < 2:
        return Interval(np.nan, np.nan, np.nan, "bracket", count), np.nan
    top = float(closed.max())
    means, spreads = np.linspace(0, 1.5 * top, MEANS), np.geomspace(0.05, top, SPREADS)
    mu, omega = means[:, None, None], spreads[None, :, None]
    below = np.where(last > 0, normal.cdf((last - mu) / omega), 0.0)
    likelihood = np.log(np.maximum(normal.cdf((after - mu) / omega) - below, 1e-12)).sum(axis=2)
    profile = likelihood.max(axis=1)
    inside = means[profile >= profile.max() - normal.ppf((1 + LEVEL) / 2) ** 2 / 2]
    high = float(inside.max()) if inside.max() < means[-1] else np.inf
    spread = float(spreads[likelihood[profile.argmax()].argmax()])
    return Interval(
        float(means[profile.argmax()]), float(inside.min()), high, "bracket", count
    ), spread
