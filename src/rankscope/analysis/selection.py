"""Which learning rate a configuration is seen at, and whether it learnt anything.

Values stay as they were measured, in every frame and table; what asks which is better multiplies by
`sign_of`.

The rate is the one with the best validation metric, seeds averaged first. Learnt is what lies above
the metric of a constant answer by more than the noise of an evaluation.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

# What identifies a configuration: everything that is studied, nothing that is tuned.
CONFIGURATION = ["model", "task", "method", "rank", "scaling"]
EDGES = ("none", "smallest tried", "largest tried", "only one tried")

Source = Literal["recorded", "before training", "by definition", "repeated value", "unknown"]

ZERO = ("matthews_correlation", "pearson", "spearman")  # correlations of a constant answer
# Trials, and share of the evaluations, at one value, to take it for a constant answer's; and its
# share of those within NEARBY: a metric of some hundred rows repeats values near a plateau as well.
FEWEST_TRIALS, SMALLEST_SHARE, OF_NEARBY, NEARBY = 3, 0.05, 0.5, 0.01
ROUNDED = 9  # digits of a mean: whichever way it is added up, equal rates are equal
LOWER = ("loss", "perplexity")  # how metrics end that are better when they are lower
DEVIATIONS = 3  # above a constant answer, in standard deviations of an evaluation: learnt


def sign_of(trials: pd.DataFrame) -> pd.Series:
    """1.0 for each trial whose metric is better when it is greater, else -1.0: as recorded
    (``greater_is_better``), else by the metric's name."""
    if not {"metric", "greater_is_better"} & set(trials.columns):
        return pd.Series(1.0, trials.index)
    if "metric" not in trials:
        return trials["greater_is_better"].astype(bool).map({True: 1.0, False: -1.0})
    named = ~trials["metric"].astype(str).str.lower().str.endswith(LOWER)
    if "greater_is_better" not in trials:
        greater = named
    else:
        recorded = trials["greater_is_better"]
        greater = recorded.where(recorded.notna(), named).astype(bool)
    return greater.map({True: 1.0, False: -1.0}).astype(float)


def best_learning_rates(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration (model, task, method, rank, scaling) with the rate that validates
    best.

    The metric of a rate is the mean over its seeds of each trial's best evaluation, including what
    a diverged trial reached before; averaging first keeps one lucky seed from choosing. A rate that
    lacks seeds of another rate can only win if no rate has them all. Ties go to the smaller rate.

    Columns: the configuration, ``learning_rate``, ``value`` (mean metric there; with a
    ``validation_split`` on the rows that chose nothing), ``optimism`` (how much better it is on
    the rows that chose; NaN without a split), ``spread`` (standard deviation over seeds, NaN for
    one), ``seeds``, ``diverged`` (trials at that rate), ``rates`` (how many were tried),
    ``lowest``, ``highest`` (of the grid), ``edge`` (one of `EDGES`), ``metric``.
    """
    columns = [
        *CONFIGURATION, "learning_rate", "value", "optimism", "spread", "seeds", "diverged",
        "rates", "lowest", "highest", "edge", "metric",
    ]  # fmt: skip
    if trials.empty:
        return pd.DataFrame(columns=columns)
    held_out = trials["held_out"] if "held_out" in trials else pd.Series(np.nan, trials.index)
    scored = trials.assign(
        scored=trials["best"].notna(),
        broken=trials["status"].eq("diverged"),
        reported=held_out.astype(float).fillna(trials["best"]),
        optimism=sign_of(trials) * (trials["best"] - held_out.astype(float)),
        chosen_by=sign_of(trials) * trials["best"],
    )
    rates = scored.groupby([*CONFIGURATION, "learning_rate"], dropna=False, as_index=False).agg(
        chosen_by=("chosen_by", "mean"),
        value=("reported", "mean"),
        optimism=("optimism", "mean"),
        spread=("reported", "std"),
        seeds=("scored", "sum"),
        diverged=("broken", "sum"),
        metric=("metric", "first"),
    )
    rates["chosen_by"] = rates["chosen_by"].round(ROUNDED)
    by = rates.groupby(CONFIGURATION, dropna=False)
    rates["rates"] = by["learning_rate"].transform("nunique")
    rates["lowest"] = by["learning_rate"].transform("min")
    rates["highest"] = by["learning_rate"].transform("max")
    usable = rates[rates["chosen_by"].notna()]
    ordered = usable.sort_values(
        ["seeds", "chosen_by", "learning_rate"], ascending=[False, False, True]
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


def one_answer(trials: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Which trials give every row the same answer, up to rounding: ``at_best`` and ``at_last``
    evaluation, a row per row of ``trials``. False where that was not recorded.

    The metrics of such an evaluation are those of a constant answer (docs/formats.md).
    """
    said = metrics[metrics["is_constant"].eq(1)] if "is_constant" in metrics else metrics.iloc[:0]
    marked = pd.MultiIndex.from_frame(said[["trial", "step"]])
    last = metrics.groupby("trial")["step"].max().reindex(trials["trial"])
    steps = {"at_best": trials["best_step"], "at_last": last}
    found = {
        name: pd.MultiIndex.from_arrays([trials["trial"].array, step.array]).isin(marked)
        for name, step in steps.items()
    }
    return pd.DataFrame(found, index=trials.index)


def baselines(trials: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per model and task: ``constant``, its ``source``, and ``noise``.

    ``constant`` is the metric of a constant answer: as recorded with the trials (column
    ``constant``), else 0 for correlations, else a value that many evaluations of several trials,
    and most of those near it, have exactly, because models that learnt nothing or collapsed give
    that answer; else NaN and "unknown". For a language model it is the better of that and the
    pretrained model's own metric (column ``untrained``), from which its training starts. ``noise``
    is the standard deviation of one evaluation, from second differences inside trials.
    """
    rows = []
    for (model, task), part in trials.groupby(["model", "task"]):
        own = metrics[metrics["trial"].isin(part["trial"]) & metrics["metric_value"].notna()]
        constant, source = _constant(part, own)
        rows.append((model, task, constant, source, evaluation_noise(own, constant)))
    return pd.DataFrame(rows, columns=["model", "task", "constant", "source", "noise"])


def _constant(trials: pd.DataFrame, metrics: pd.DataFrame) -> tuple[float, Source]:
    recorded, untrained = (
        float(trials[name].median()) if name in trials else np.nan
        for name in ("constant", "untrained")
    )
    sign = float(sign_of(trials).iloc[0])
    if np.isfinite(untrained) and not sign * recorded > sign * untrained:
        return untrained, "before training"
    if np.isfinite(recorded):
        return recorded, "recorded"
    if trials["metric"].iloc[0] in ZERO:
        return 0.0, "by definition"
    seen = metrics.groupby("metric_value")["trial"].agg(["size", "nunique"])
    often = seen[seen["nunique"].ge(FEWEST_TRIALS) & seen["size"].ge(SMALLEST_SHARE * len(metrics))]
    often = often.sort_values("size", ascending=False)
    values = metrics["metric_value"].to_numpy(dtype=float)
    for value, size in zip(often.index.to_numpy(dtype=float), often["size"], strict=True):
        if size >= OF_NEARBY * (np.abs(values - value) <= NEARBY).sum():
            return float(value), "repeated value"
    return np.nan, "unknown"


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

    Learnt: better than the constant answer by three standard deviations of an evaluation. Where the
    constant answer is unknown, nothing can be said and the configuration counts as learnt.
    """
    signed = trials.assign(sign=sign_of(trials), best=sign_of(trials) * trials["best"])
    rates = signed.groupby([*CONFIGURATION, "learning_rate"], dropna=False)
    means = rates.agg(best=("best", "mean"), sign=("sign", "first"))
    table = means.groupby(CONFIGURATION, dropna=False).max().reset_index()
    table = table.merge(found, on=["model", "task"], how="left")
    limit = table["sign"] * table["constant"] + DEVIATIONS * table["noise"].fillna(0)
    is_learnt = table["best"].gt(limit) | limit.isna()
    return table.assign(learnt=is_learnt, best=table["sign"] * table["best"])
