"""The figure of continued training: the same configurations with the study's budget and with a
longer one."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import checkpoints
from rankscope.analysis.frames import Frames
from rankscope.report.curves import metric_names
from rankscope.report.drifts import thinned
from rankscope.report.theme import (
    MOST_ROWS,
    Figure,
    faceted,
    named_colours,
    rate_name,
    series_name,
    tooltips,
)


def continued_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Metric and drift over the steps, one line per configuration and budget, seeds averaged."""
    rows, note = _rows(frames, conclusions)
    if rows.empty:
        return None
    tips = tooltips(
        ("series", "configuration"),
        ("budget", "budget"),
        ("step", "step", "d"),
        ("value", "mean", ".3f"),
    )
    lines = alt.Chart().encode(
        x=alt.X("step:Q", title="optimiser step", axis=alt.Axis(grid=False, tickCount=4)),
        y=alt.Y("value:Q", title="mean over seeds", scale=alt.Scale(zero=False, padding=8)),
        color=named_colours(rows["series"], "configuration", "series"),
        detail="line:N",
        tooltip=tips,
    )
    budgets = alt.StrokeDash(
        "budget:N", title="budget", scale=alt.Scale(domain=sorted(rows["budget"].unique()))
    )
    layers = [
        lines.mark_line(strokeWidth=1.8).encode(strokeDash=budgets),
        lines.mark_circle(size=40, opacity=0),
    ]
    return Figure(
        "continued",
        "Continued training",
        "The same configuration and seeds with the study's budget and with a longer one. The "
        "schedule is stretched, so "
        f"that the learning rate at one step differs, too.{note}",
        "Line charts over optimiser steps, two per task: the validation metric and the "
        "relative stable rank of the "
        "effective weight.",
        faceted(layers, rows, own_scales=("x", "y")),
        ("model", "task", "method", "rank"),
    )


def _rows(frames: Frames, conclusions: Conclusions) -> tuple[pd.DataFrame, str]:
    """One row per point of a line, and what the caption says of lines that are not drawn."""
    pairs = conclusions.continued.pairs
    trials = frames.all_trials
    trials = trials[trials["trial"].isin([*pairs["trial"], *pairs["trial_once"]])]
    seen = checkpoints(trials, frames.metrics, frames.drifts)
    if seen.empty:
        return seen, ""
    seen["budget"] = seen["trial"].map(trials.set_index("trial")["budget"]).map("{:g} ×".format)
    keys = ["model", "task", "method", "scaling", "rank", "learning_rate", "budget"]
    seen, note = thinned(seen, keys, MOST_ROWS // 2)  # two panels
    means = seen.groupby([*keys, "step"], dropna=False, as_index=False)[
        ["metric_value", "log_drift"]
    ].mean()
    means["method"] = [
        series_name(m, s) for m, s in zip(means["method"], means["scaling"], strict=True)
    ]
    means["rate"] = means["learning_rate"].map(rate_name)
    ranks = means["rank"].map(lambda rank: "" if pd.isna(rank) else f", r = {rank}")
    means["series"] = means["method"] + ranks + ", " + means["rate"]
    means["line"] = means["series"] + " " + means["budget"]
    where = means["task"] + (" · " + means["model"] if means["model"].nunique() > 1 else "")
    metric = means["task"].map(metric_names(frames)).str.replace("_", " ")
    rows = pd.concat(
        [
            means.assign(panel=where + ": " + metric, value=means["metric_value"]),
            means.assign(panel=where + ": sr(W + ΔW) / sr(W)", value=np.exp(means["log_drift"])),
        ]
    )
    return rows.drop(columns=["metric_value", "log_drift", "learning_rate", "scaling"]), note
