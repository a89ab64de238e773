"""Figures of training: loss and metric over the steps, and the loss against the drift."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import LABELS, checkpoints
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import CONFIGURATION
from rankscope.report.curves import metric_names
from rankscope.report.drifts import MOST_LINES, MOST_POINTS, RATIO, ratio_scale, thinned
from rankscope.report.theme import (
    MOST_ROWS,
    Figure,
    faceted,
    log_axis,
    named_colours,
    panels,
    rate_colour,
    rate_name,
    seeds_words,
    series_name,
    series_names,
    tooltips,
)

LINE = ["model", "task", "method", "scaling", "rank", "learning_rate"]


def curves_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Evaluation loss and metric over the steps, one line per rank and rate, averaged over seeds;
    the rate chosen for a rank is emphasised."""
    seen = frames.metrics.merge(frames.trials[LABELS], on="trial")
    seen = seen[seen["step"].gt(0)]
    if seen.empty or seen["step"].nunique() < 2:
        return None
    seen, note = thinned(seen, LINE, MOST_ROWS // 2)  # two panels
    means = _means(seen, conclusions)
    rows = _two_panels(means, frames).dropna(subset=["value"])
    order = list(dict.fromkeys(rows.sort_values("place", kind="stable")["panel"]))
    if rows.empty:
        return None
    tips = tooltips(
        ("method", "method"), ("rank", "r", "d"), ("rate", "learning rate"), ("step", "step", "d")
    )
    tips += tooltips(("value", "mean", ".3f"), ("seeds", "seeds", "d"))
    methods = sorted(rows["method"].unique())
    dash = (
        alt.StrokeDash("method:N", title="method", scale=alt.Scale(domain=methods))
        if len(methods) > 1
        else alt.Undefined
    )
    lines = alt.Chart().encode(
        x=alt.X("step:Q", title="optimiser step", axis=alt.Axis(grid=False, tickCount=4)),
        y=alt.Y("value:Q", title="mean over seeds", scale=alt.Scale(zero=False, padding=8)),
        color=rate_colour(means["learning_rate"], frames.trials["learning_rate"]),
        detail="line:N",
        tooltip=tips,
    )
    layers = [
        lines.transform_filter("!datum.picked")
        .mark_line(strokeWidth=1, opacity=0.28)
        .encode(strokeDash=dash),
        lines.transform_filter("datum.picked")
        .mark_line(strokeWidth=1.8, opacity=0.95)
        .encode(strokeDash=dash),
        lines.mark_circle(size=30, opacity=0),  # invisible, larger targets for tooltips
    ]
    both = bool(rows["place"].str.endswith(" 2").any())
    rows = rows.drop(columns="place")
    return Figure(
        "curves",
        "Learning curves",
        f"Validation metric{' and evaluation loss' * both} over the steps, a line per rank "
        "and learning rate, "
        "seeds averaged; strong: the rate chosen for its rank. The filters above tell ranks apart."
        f"{seeds_words(means['seeds'], of='a line')}{note}",
        "Line charts over optimiser steps, "
        + ("two per task: the validation metric and the loss." if both else "one per task."),
        faceted(layers, rows, own_scales=("x", "y"), order=order, columns=2 if both else None),
        ("model", "task", "method", "rank"),
    )


def _means(seen: pd.DataFrame, conclusions: Conclusions) -> pd.DataFrame:
    """Loss and metric per line and step, averaged over seeds, and whether its rate was chosen."""
    means = seen.groupby([*LINE, "step"], dropna=False, as_index=False).agg(
        eval_loss=("eval_loss", "mean"),
        metric_value=("metric_value", "mean"),
        seeds=("seed", "nunique"),
    )
    picked = conclusions.learning_rates[[*CONFIGURATION, "learning_rate"]].assign(picked=True)
    picked = picked.astype({name: means[name].dtype for name in LINE})
    means = means.merge(picked, on=LINE, how="left")
    means["picked"] = means["picked"].eq(True)
    means["method"] = series_names(means)
    means["rate"] = means["learning_rate"].map(rate_name)
    means["line"] = means["method"] + " " + means["rank"].astype(str) + " " + means["rate"]
    return means


def _two_panels(means: pd.DataFrame, frames: Frames) -> pd.DataFrame:
    """The same rows twice: with the metric, and, where that is another, with the loss."""
    where = means["task"] + (" · " + means["model"] if means["model"].nunique() > 1 else "")
    metric = means["task"].map(metric_names(frames)).str.replace("_", " ")
    kept = means.drop(columns=["eval_loss", "metric_value", "learning_rate", "scaling"])
    measured = kept.assign(
        panel=where + ": " + metric, value=means["metric_value"], place=where + " 1"
    )
    if frames.trials["metric"].eq("eval_loss").all():
        return measured
    losses = kept.assign(
        panel=where + ": evaluation loss", value=means["eval_loss"], place=where + " 2"
    )
    return pd.concat([measured, losses], ignore_index=True)


def loss_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Evaluation loss against drift: one point per checkpoint, one thin path per trial. None where
    the loss is the metric, which ``threshold_figure`` shows."""
    points = frames.checkpoints
    points = points[points["method"].eq("lora") & np.isfinite(points["eval_loss"].astype(float))]
    measured_by_loss = frames.trials.loc[frames.trials["metric"].eq("eval_loss"), "task"]
    points = points[points["eval_loss"].gt(0) & ~points["task"].isin(measured_by_loss)]
    if points.empty:
        return None
    total = len(points)
    points = points.iloc[:: -(-total // MOST_POINTS)]
    rows = points.assign(
        ratio=np.exp(points["log_drift"]),
        value=points["eval_loss"],
        rate=points["learning_rate"].map(rate_name),
        method=[series_name("lora", rule) for rule in points["scaling"]],
    )
    kept = ["model", "task", "method", "rank", "rate", "seed", "trial", "step", "ratio", "value"]
    rows = panels(rows[kept])
    x = alt.X(
        "ratio:Q",
        title="stable rank after / before, " + RATIO,
        scale=ratio_scale(rows["ratio"]),
        axis=log_axis(rows["ratio"], form=".5~g", grid=False, shown=1),
    )
    y = alt.Y(
        "value:Q",
        title="evaluation loss",
        scale=alt.Scale(type="log", nice=False, padding=8),
        axis=log_axis(rows["value"], form="~g", grid=True),
    )
    tips = tooltips(
        ("rate", "learning rate"), ("rank", "r", "d"), ("step", "step", "d"), ("seed", "seed", "d")
    )
    tips += tooltips(("ratio", "sr after / before", ".3~g"), ("value", "loss", ".3~g"))
    colour = rate_colour(points["learning_rate"], frames.trials["learning_rate"])
    base = alt.Chart().encode(x=x, y=y, color=colour)
    paths = base.mark_line(strokeWidth=0.8, opacity=0.25).encode(detail="trial:N", order="step:Q")
    lines = [paths] if rows["trial"].nunique() <= MOST_LINES else []
    drawn = f" {len(rows):,} of {total:,} checkpoints are drawn." if len(rows) < total else ""
    return Figure(
        "loss",
        "Evaluation loss against the drift of the stable rank",
        "Each point is an evaluated checkpoint of a LoRA trial, thin lines join those of one trial "
        f"in the order of training; both axes logarithmic.{drawn}",
        "Scatter plots, one per task: evaluation loss against relative stable rank, both axes "
        "logarithmic.",
        faceted(
            [*lines, base.mark_circle(size=20, opacity=0.65).encode(tooltip=tips)],
            rows,
            own_scales=("x", "y"),
        ),
        ("model", "task", "method", "rank"),
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
    means["method"] = series_names(means)
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
