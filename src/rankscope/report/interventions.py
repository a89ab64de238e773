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
from rankscope.report.table import WHERE, Column, Table
from rankscope.report.theme import Figure, faceted, log_axis, panels, rate_colour, rate_name


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
    rows = rows[["part", "model", "task", "trial", "ratio", "value", "rate", "level"]]
    rows = panels(rows.dropna(subset=["ratio", "value"]), metric_names(frames))
    x = alt.X(
        "ratio:Q",
        title="stable rank after / before, " + RATIO,
        scale=alt.Scale(type="log", nice=False, padding=8),
        axis=log_axis(rows["ratio"], form=".3~g", grid=False, shown=1),
    )
    y = alt.Y("value:Q", title="validation metric", scale=alt.Scale(zero=False, padding=8))
    colour = rate_colour(cloud["learning_rate"])
    points, lines = (
        alt.Chart().transform_filter(f"datum.part == '{part}'") for part in ("point", "path")
    )
    layers = [
        points.mark_circle(size=14, opacity=0.25).encode(x=x, y=y, color=colour),
        lines.mark_line(strokeWidth=0.9, opacity=0.8).encode(
            x=x, y=y, color=colour, detail="trial:N", order="level:Q"
        ),
    ]
    return Figure(
        "paths",
        "Edited trials along growing updates",
        "Points: checkpoints of training. Lines: finished trials whose update is scaled by t = 1 "
        "and more, one line a trial, evaluated again; where lines stay high at drifts at which "
        "points lie low, the drift alone does not bring the loss.",
        "Line charts over scatter plots, one per task: validation metric against relative stable "
        "rank on a logarithmic axis.",
        faceted(layers, rows, own_scales=("x", "y")),
        ("model", "task"),
    )


def interventions_table(conclusions: Conclusions) -> Table:
    """One row per task, group of trials, head, family and level; no row where nothing was
    edited."""
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
    return Table(
        "interventions",
        "Edited trials",
        "Mean change of the metric against each trial's own weights with the same head, on the "
        "same rows, with 95 % intervals for new seeds and new rows; medians of sr(W + ΔW) / sr(W) "
        "and of σ₁(ΔW) / σ₁(W) under the edit.",
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
            Column("change", "change", "+.3f"),
            Column("change_low", "from", "+.3f"),
            Column("change_high", "to", "+.3f"),
        ),
        pd.DataFrame(rows),
    )
