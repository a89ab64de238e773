"""The learning rate of each configuration: the one with the best validation metric, seeds averaged
first."""

from __future__ import annotations

import numpy as np
import pandas as pd

# What identifies a configuration: everything that is studied, nothing that is tuned.
CONFIGURATION = ["model", "task", "method", "rank", "scaling"]
EDGES = ("none", "smallest tried", "largest tried", "only one tried")


def best_learning_rates(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration (model, task, method, rank, scaling) with the rate that validates
    best.

    The metric of a rate is the mean over its seeds of each trial's best evaluation, a diverged
    trial with what it reached before; averaging first keeps one lucky seed from choosing. A rate
    that misses seeds which another rate of the configuration has can only win if no rate has them
    all. Ties go to the smaller rate.

    Columns: the configuration, ``learning_rate``, ``value`` (mean metric there), ``spread``
    (standard deviation over seeds, NaN for one), ``seeds``, ``diverged`` (trials at that
    rate), ``rates`` (how many were tried), ``lowest``, ``highest`` (of the grid), ``edge``
    (one of `EDGES`), ``metric``.
    """
    columns = [
        *CONFIGURATION,
        "learning_rate",
        "value",
        "spread",
        "seeds",
        "diverged",
        "rates",
        "lowest",
    ]
    columns += ["highest", "edge", "metric"]
    if trials.empty:
        return pd.DataFrame(columns=columns)
    scored = trials.assign(scored=trials["best"].notna(), broken=trials["status"].eq("diverged"))
    rates = scored.groupby([*CONFIGURATION, "learning_rate"], dropna=False, as_index=False).agg(
        value=("best", "mean"),
        spread=("best", "std"),
        seeds=("scored", "sum"),
        diverged=("broken", "sum"),
        metric=("metric", "first"),
    )
    by = rates.groupby(CONFIGURATION, dropna=False)
    rates["rates"] = by["learning_rate"].transform("nunique")
    rates["lowest"] = by["learning_rate"].transform("min")
    rates["highest"] = by["learning_rate"].transform("max")
    usable = rates[rates["value"].notna()]
    ordered = usable.sort_values(
        ["seeds", "value", "learning_rate"], ascending=[False, False, True]
    )
    best = ordered.drop_duplicates(CONFIGURATION).sort_values(CONFIGURATION, ignore_index=True)
    best["edge"] = np.select(
        [
            best["rates"].eq(1),
            best["learning_rate"].eq(best["lowest"]),
            best["learning_rate"].eq(best["highest"]),
        ],
        ["only one tried", "smallest tried", "largest tried"],
        "none",
    )
    return best[columns]


def chosen(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials at the chosen learning rate of their configuration: all seeds, columns as in
    `trials`."""
    best = best_learning_rates(trials)[[*CONFIGURATION, "learning_rate"]]
    if best.empty:
        return trials.iloc[:0]
    best = best.astype(
        {column: trials[column].dtype for column in CONFIGURATION}
    )  # all-empty columns change theirs
    return trials.merge(best, on=[*CONFIGURATION, "learning_rate"], how="inner")
