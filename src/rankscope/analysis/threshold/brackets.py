"""Brackets: between which two visited drifts each configuration and seed lost a share of the gain.

The thresholds t_c ~ N(mu, omega^2) are interval-censored by these pairs; mu has a
profile-likelihood interval.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankscope.analysis.distributions import chi_squared_ppf, normal
from rankscope.analysis.inference import LEVEL, Interval
from rankscope.analysis.threshold.evidence import NEAR, Evidence

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
    inside = means[profile >= profile.max() - chi_squared_ppf(LEVEL, 1) / 2]
    high = float(inside.max()) if inside.max() < means[-1] else np.inf
    spread = float(spreads[likelihood[profile.argmax()].argmax()])
    return Interval(
        float(means[profile.argmax()]), float(inside.min()), high, "bracket", count
    ), spread
