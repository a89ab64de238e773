"""Edited trials (H6): the figure of their paths, and the table of what each edit did."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import LABELS
from rankscope.analysis.frames import Frames
from rankscope.report.curves import metric_names
from rankscope.report.drifts import MOST_POINTS, RATIO
from rankscope.report.table import WHERE, Column, Table, interval_column
from rankscope.report.theme import (
    REFERENCE,
    SERIES,
    Figure,
    faceted,
    log_axis,
    panels,
    rate_name,
    tooltips,
)


def paths_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """One thin line for each edited trial along t ΔW, over the checkpoints of training."""
    edited = frames.interventions
    if edited.empty:
        return None
    on_path = edited["family"].eq("scale") & edited["scope"].eq("all") & edited["level"].ge(1)
    paths = edited[on_path].merge(frames.all_trials[LABELS], on="trial")
    cloud = frames.checkpoints
    cloud = cloud.iloc[:: max(1, -(-len(cloud) // MOST_POINTS))]
    rows = pd.concat(
        [
            cloud.assign(part="point", value=cloud["metric_value"]),
            paths.assign(part="path").sort_values("level"),
        ],
        ignore_index=True,
    )
    rows["ratio"], rows["rate"] = np.exp(rows["log_drift"]), rows["learning_rate"].map(rate_name)
    kept = ["part", "model", "task", "trial", "rank", "seed", "ratio", "value", "rate", "level"]
    rows = rows[kept].dropna(subset=["ratio", "value"])
    rows = rows[
        rows["task"].isin(paths["task"])
    ]  # what was edited; other clouds are in H2's figure
    rows = panels(rows, metric_names(frames))
    x = alt.X(
        "ratio:Q",
        title="stable rank after / before, " + RATIO,
        scale=alt.Scale(type="log", nice=False, padding=8),
        axis=log_axis(rows["ratio"], form=".3~g", grid=False, shown=1),
    )
    y = alt.Y("value:Q", title="validation metric", scale=alt.Scale(zero=False, padding=8))
    base = alt.Chart().encode(x=x, y=y, detail="trial:N")
    points = base.transform_filter("datum.part == 'point'")
    lines = base.transform_filter("datum.part == 'path'")
    group = alt.Color("rate:N", title="learning rate", scale=_rate_scale(paths["learning_rate"]))
    tips = tooltips(("rate", "learning rate"), ("rank", "r", "d"), ("seed", "seed", "d"))
    tips += tooltips(("level", "t", ".3~g"), ("ratio", "sr after / before", ".3~g"))
    tips += tooltips(("value", "metric", ".3f"))
    layers = [
        points.mark_circle(size=16, opacity=0.3, color=REFERENCE).encode(tooltip=tips),
        lines.mark_line(strokeWidth=1.3, opacity=0.9).encode(color=group, order="level:Q"),
        lines.mark_circle(size=16, opacity=0.9).encode(color=group, tooltip=tips),
        lines.transform_filter("datum.level == 1")
        .mark_point(size=46, filled=True, opacity=1)
        .encode(color=group, tooltip=tips),
    ]
    return Figure(
        "paths",
        "Edited trials along growing updates",
        "Grey: checkpoints of training. Lines: finished trials whose update is scaled by t, from "
        "t = 1 (large points) on, evaluated again; where lines stay high at drifts at which grey "
        "points lie low, the drift alone does not bring the loss.",
        "Line charts over scatter plots, one per task: validation metric against relative stable "
        "rank on a logarithmic axis.",
        faceted(layers, rows, own_scales=("x", "y")),
        ("model", "task", "rank"),
    )


def _rate_scale(rates: pd.Series) -> alt.Scale:
    """Categorical colours: few rates are edited, and a ramp's colours would be too close."""
    names = [rate_name(rate) for rate in sorted(rates.unique())]
    return alt.Scale(
        domain=names, range=[SERIES[place % len(SERIES)] for place in range(len(names))]
    )


def interventions_table(conclusions: Conclusions) -> Table:
    """One row per task, group of trials, head, family and level; none if nothing was edited."""
    rows = []
    for verdict in conclusions.verdicts:
        if verdict.hypothesis != "H6":
            continue
        for one in verdict.numbers["interventions"]:
            where = {"model": one["model"], "task": one["task"]}
            for group in ("good", "collapsed"):
                for head in ("own", "refitted"):
                    found = one.get(f"changes_{group}_{head}", [])
                    rows += [{**where, "group": group, "head": head, **line} for line in found]
    found = pd.DataFrame(rows)
    language = "forgetting" in found
    return Table(
        "interventions",
        "Edited trials",
        "Mean change of the metric against each trial's own weights with the same head, on the "
        "same rows, with 95 % intervals for new seeds and new rows; medians of sr(W + ΔW) / sr(W) "
        "and of σ₁(ΔW) / σ₁(W) under the edit."
        + (
            " Forgetting is the language loss less the base's, in nats a token, with intervals "
            "for new seeds."
            if language
            else ""
        ),
        (
            *WHERE,
            Column("group", "trials that are"),
            Column("head", "head"),
            Column("family", "edit"),
            Column("level", "level", ".3g"),
            Column("trials", "trials", ".0f"),
            Column("ratio", "sr after / before", ".3f"),
            Column("rho", "σ₁(ΔW) / σ₁(W)", ".2f"),
            Column("metric", "metric", ".3f"),
            interval_column("change", "change", "+.3f"),
            *([interval_column("forgetting", "forgetting", "+.2f")] if language else []),
        ),
        found,
    )
