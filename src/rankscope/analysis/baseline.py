"""What counts as learnt: the metric of a constant answer, and the noise of one evaluation."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from rankscope.analysis.selection import CONFIGURATION

Source = Literal["recorded", "by definition", "repeated value", "unknown"]

ZERO = ("matthews_correlation", "pearson", "spearman")  # correlations of a constant answer
FEWEST_TRIALS, SMALLEST_SHARE = (
    3,
    0.1,
)  # of the evaluations at one value, to take it for a constant answer's
DEVIATIONS = 3  # above a constant answer, in standard deviations of an evaluation: learnt


def baselines(trials: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per model and task: ``constant``, its ``source``, and ``noise``.

    ``constant`` is the metric of a constant answer: as recorded with the trials (column
    ``constant``), else 0 for correlations, else the value at which many evaluations of several
    trials stand exactly, because models that learnt nothing or collapsed give that answer. NaN and
    "unknown" where there is none of these. ``noise`` is the standard deviation of one evaluation,
    from second differences inside trials.
    """
    rows = []
    for (model, task), part in trials.groupby(["model", "task"]):
        own = metrics[metrics["trial"].isin(part["trial"]) & metrics["metric_value"].notna()]
        constant, source = _constant(part, own)
        rows.append((model, task, constant, source, evaluation_noise(own, constant)))
    return pd.DataFrame(rows, columns=["model", "task", "constant", "source", "noise"])


def _constant(trials: pd.DataFrame, metrics: pd.DataFrame) -> tuple[float, Source]:
    recorded = trials["constant"].dropna() if "constant" in trials else pd.Series(dtype=float)
    if len(recorded):
        return float(recorded.median()), "recorded"
    if trials["metric"].iloc[0] in ZERO:
        return 0.0, "by definition"
    seen = metrics.groupby("metric_value")["trial"].agg(["size", "nunique"])
    often = seen[seen["nunique"].ge(FEWEST_TRIALS) & seen["size"].ge(SMALLEST_SHARE * len(metrics))]
    if often.empty:
        return np.nan, "unknown"
    return float(often.sort_values("size").index.to_numpy(dtype=float)[-1]), "repeated value"


def evaluation_noise(metrics: pd.DataFrame, constant: float) -> float:
    """Standard deviation of one evaluation: the median second difference inside trials, scaled for
    a normal.

    Evaluations at the constant answer have no noise and are left out. NaN where no trial has three
    others.
    """
    moving = metrics[metrics["metric_value"].ne(constant)].sort_values(["trial", "step"])
    groups = moving.groupby("trial")["metric_value"]
    second = (groups.shift(1) + groups.shift(-1) - 2 * moving["metric_value"]).dropna()
    return float(second.abs().median() / 0.6745 / np.sqrt(6)) if len(second) else np.nan


def learnt(trials: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Configurations (one row each) with ``best``, the best mean over seeds of any rate, and
    ``learnt``.

    Learnt: best above the constant answer by three standard deviations of an evaluation. Where the
    constant answer is unknown, nothing can be said and the configuration counts as learnt.
    """
    means = trials.groupby([*CONFIGURATION, "learning_rate"], dropna=False)["best"].mean()
    table = means.groupby(CONFIGURATION, dropna=False).max().reset_index()
    table = table.merge(found, on=["model", "task"], how="left")
    limit = table["constant"] + DEVIATIONS * table["noise"].fillna(0)
    return table.assign(learnt=table["best"].gt(limit) | limit.isna())
