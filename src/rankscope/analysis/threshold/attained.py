"""The best that is attained near sr(W) against the best attained beyond a drift, paired by
configuration."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankscope.analysis.distributions import student
from rankscope.analysis.inference import LEVEL
from rankscope.analysis.threshold.evidence import NEAR, Evidence

RATIOS = (
    0.9,
    0.75,
    0.5,
    0.35,
    0.25,
    0.2,
    0.15,
    0.1,
    0.05,
)  # where sr falls; their inverses where it rises


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
