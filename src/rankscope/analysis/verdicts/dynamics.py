"""What the estimates say about H3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rankscope.analysis.dynamics import Continued, Dynamics
from rankscope.analysis.inference import Interval
from rankscope.analysis.verdicts.verdict import (
    ERROR_RATE,
    Verdict,
    answer,
    counted,
    entries,
    interval_of,
    named,
    overall,
    records,
    sentence,
    where,
)


def dynamics_verdict(found: Dynamics, longer: Continued) -> Verdict:
    """Per task, supported: drift rises with the step, and the metric worsens with drift beyond the
    knot (Holm): it falls, or rises if it is better when it is lower.

    Contradicted: drift falls with the step, or the metric improves with drift beyond
        the knot. Over tasks as in H2.
    """
    tasks = found.tasks
    numbers: dict[str, Any] = {
        "tasks": records(tasks),
        "left_out": found.left_out,
        "continued_pairs": len(longer.pairs),
    }
    for name in ("drift", "best", "last"):
        numbers |= entries(f"continued_{name}", getattr(longer, name))
    missing = (
        f"Left out, because nothing was learnt: {named(found.left_out)}." if found.left_out else ""
    )
    if tasks.empty:
        return answer(
            "H3",
            "undecided",
            ["No task has a LoRA configuration that learnt anything."],
            numbers,
            missing,
        )
    signs = [found.sign(row["model"], row["task"]) for row in records(tasks)]
    words = [_word(row, sign) for row, sign in zip(records(tasks), signs, strict=True)]
    for row, word in zip(numbers["tasks"], words, strict=True):
        row["answer"] = word
    several = tasks["model"].nunique() > 1
    sentences = [
        _headline(tasks, several, signs),
        *(_sentence(row, several) for row in records(tasks)),
    ]
    once = tasks["growing_cluster"].ne("seed")
    silent = named(where(row, several) for row in records(tasks[once]))
    return answer(
        "H3",
        overall(words),
        [*sentences, _longer(longer)],
        numbers,
        missing,
        f"One seed on {silent}: the interval of the correlation resamples its trials."
        if silent
        else "",
        "A slope compares checkpoints of one trial; the training step moves along with the drift. "
        "An e-fold of drift moves sr(W + ΔW) away from sr(W) by a factor of 2.72.",
    )


def _word(row: dict[str, Any], better: int) -> str:
    growing = row["growing_low"] > 0
    worse, improved = (
        row["metric_after_p_holm"] <= ERROR_RATE and sign * better * row["metric_after"] > 0
        for sign in (-1, 1)
    )
    if row["growing_high"] < 0 or improved:
        return "contradicted"
    return "supported" if growing and worse else "undecided"


def _headline(tasks: pd.DataFrame, several: bool, signs: Sequence[int]) -> str:
    rows = records(tasks)
    grows = [row for row in rows if row["growing_low"] > 0]
    falls = [
        row for row in rows if row["metric_after_p_holm"] <= ERROR_RATE and row["metric_after"] < 0
    ]
    rises = [
        row for row in rows if row["metric_after_p_holm"] <= ERROR_RATE and row["metric_after"] > 0
    ]
    other = [row for row in rows if row not in falls and row not in rises]
    share = f"{100 * tasks['knot'].iloc[0]:.0f} % of sr(W)"
    parts = [
        f"inside trials the drift is shown to grow with training on {len(grows)} of "
        f"{counted(len(rows), 'task')}"
    ]
    for moved, word in ((falls, "falls"), (rises, "rises")):
        if moved:
            told = named(f"{where(row, several)} ({_slope(row)})" for row in moved)
            parts.append(f"past {share} the metric {word} with it on {told}")
    lowered = [row for row, sign in zip(rows, signs, strict=True) if sign < 0]
    if other:
        word = "worsens" if any(row in lowered for row in other) else "falls"
        parts.append(
            f"that it {word} is not shown on {named(where(row, several) for row in other)}"
            if falls or rises
            else f"that the metric {word} with it past {share} is not shown on "
            f"{named(where(row, several) for row in other)}"
        )
    if lowered:
        parts.append(
            f"on {named(where(row, several) for row in lowered)} the metric is a loss: lower is "
            "better"
        )
    return sentence(parts)


def _slope(row: dict[str, Any]) -> str:
    return f"{interval_of(row, 'metric_after'):+.3f} per e-fold"


def _sentence(row: dict[str, Any], several: bool) -> str:
    grown = Interval(
        row["growing"],
        row["growing_low"],
        row["growing_high"],
        row["growing_cluster"],
        row["growing_clusters"],
    )
    text = f"{where(row, several)}: drift and step have a rank correlation of {grown}"
    if not np.isfinite(row["growing"]):
        text = f"{where(row, several)}: too few steps to correlate the drift with them"
    if not np.isfinite(row["metric_after"]):
        return f"{text}; too few trials have checkpoints past the knot for a slope."
    after, loss, before = (
        interval_of(row, name) for name in ("metric_after", "loss_after", "metric_before")
    )
    return (
        f"{text}; with every e-fold of drift the metric changes by {after:+.3f} past the knot "
        f"and by {before:+.3f} "
        f"before it, the evaluation loss by {loss:+.3f} past it "
        f"({counted(row['trials'], 'trial')}, {row['beyond']} of them past the knot)."
    )


def _longer(found: Continued) -> str:
    pairs = found.pairs
    if pairs.empty:
        return ""
    times = " or ".join(f"{budget:g}" for budget in sorted(pairs["budget"].unique()))
    return (
        f"Trained {times} times as long, {counted(len(pairs), 'trial')} ended with a drift "
        "whose size changed by "
        f"{found.drift:+z.2f} in log sr, a last metric that changed by {found.last:+z.3f}, and a "
        "best one by "
        f"{found.best:+z.3f}."
    )
