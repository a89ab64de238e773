"""Figures of the drift of W + dW: against performance, with the threshold, and over the steps of
training."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import LABELS
from rankscope.analysis.frames import Frames
from rankscope.analysis.threshold import Threshold
from rankscope.analysis.threshold.evidence import NEAR
from rankscope.report.curves import metric_names
from rankscope.report.theme import (
    INK,
    MOST_ROWS,
    Figure,
    faceted,
    log_axis,
    panels,
    rate_colour,
    rate_name,
    series_name,
    tooltips,
)

MARK = "#d1495b"
MOST_POINTS = 3000  # checkpoints drawn
MOST_LINES = 150  # trials drawn over time
RATIO = "sr(W + ΔW) / sr(W)"


def threshold_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Performance against drift with the fitted line, the threshold and its band."""
    points = frames.checkpoints
    points = points[points["method"].eq("lora")]
    if points.empty:
        return None
    total = len(points)
    points = points.iloc[:: -(-total // MOST_POINTS)]
    drawn = [_checkpoint_rows(points), *map(_threshold_rows, conclusions.thresholds)]
    rows = panels(pd.concat(drawn, ignore_index=True), metric_names(frames))
    found = sum(t.answer == "supported" for t in conclusions.thresholds)
    thinned = (
        f" {len(points):,} of {total:,} checkpoints are drawn; all are used."
        if len(points) < total
        else ""
    )
    return Figure(
        "threshold",
        "Performance against the drift of the stable rank",
        "Each point is an evaluated checkpoint of a LoRA trial. 1 is no drift, 0.5 a stable rank "
        "that has halved. Pale points have drifted by less than a tenth; of them only the "
        "references enter the fit. Line: the fitted plateau and decline, faint where H2 is not "
        "supported. Red: the drift at which half of the gain over a constant answer is lost, with "
        f"its 95 % interval, where H2 is supported ({found} of {len(conclusions.thresholds)})."
        f"{thinned}",
        "Scatter plots, one per task: validation metric against relative stable rank on a "
        "logarithmic axis.",
        faceted(_threshold_layers(rows, points), rows, own_scales=("x", "y")),
        ("model", "task", "method", "rank"),
    )


def _checkpoint_rows(points: pd.DataFrame) -> pd.DataFrame:
    near = points["log_drift"].abs().le(NEAR)
    points = points.assign(
        part=np.where(near, "near", "point"),
        ratio=np.exp(points["log_drift"]),
        value=points["metric_value"],
        rate=points["learning_rate"].map(rate_name),
        method=[series_name("lora", rule) for rule in points["scaling"]],
    )
    where = ["part", "model", "task", "method", "ratio", "rho", "value"]
    return points[[*where, "rate", "rank", "step", "seed"]]


def _threshold_layers(rows: pd.DataFrame, points: pd.DataFrame) -> list[alt.Chart]:
    axis = log_axis(rows["ratio"], form=".3~g", grid=False, shown=1)
    x = alt.X(
        "ratio:Q",
        title="stable rank after / before, " + RATIO,
        scale=_ratio_scale(rows["ratio"]),
        axis=axis,
    )
    y = alt.Y("value:Q", title="validation metric", scale=alt.Scale(zero=False, padding=8))
    tips = tooltips(
        ("rate", "learning rate"), ("rank", "r", "d"), ("step", "step", "d"), ("seed", "seed", "d")
    )
    tips += tooltips(("ratio", "sr after / before", ".3~g"), ("rho", "σ₁(ΔW) / σ₁(W)", ".3~g"))
    tips += tooltips(("value", "metric", ".3f"))
    part = {
        name: alt.Chart().transform_filter(f"datum.part == '{name}'")
        for name in ("near", "point", "curve", "threshold")
    }
    colour = rate_colour(points["learning_rate"])
    return [
        part["threshold"]
        .mark_rect(color=MARK)
        .encode(x=alt.X("low:Q"), x2="high:Q", opacity=_where_shown(0.18)),
        part["near"].mark_circle(size=22, opacity=0.3).encode(x=x, y=y, color=colour, tooltip=tips),
        part["point"]
        .mark_circle(size=22, opacity=0.65)
        .encode(x=x, y=y, color=colour, tooltip=tips),
        part["curve"]
        .mark_line(color=INK, strokeWidth=1.8)
        .encode(x=x, y=y, opacity=alt.condition("datum.shown", alt.value(1), alt.value(0.35))),
        part["threshold"]
        .mark_rule(color=MARK, strokeWidth=1.8)
        .encode(x=x, tooltip=tooltips(("label", "threshold")), opacity=_where_shown(1)),
    ]


def _where_shown(opacity: float) -> alt.OpacityValue:
    return alt.condition("datum.shown", alt.value(opacity), alt.value(0))


def _ratio_scale(ratios: pd.Series) -> alt.Scale:
    """A logarithmic scale that shows 1, which is no drift, on every panel."""
    ends = {"domainMax": 1} if ratios.max() <= 1 else {"domainMin": 1} if ratios.min() >= 1 else {}
    return alt.Scale(type="log", nice=False, padding=8, **ends)


def _threshold_rows(found: Threshold) -> pd.DataFrame:
    """The fitted line, and the threshold where there is one.

    Where there is none, a mark of no extent on the line that is not shown: an empty
    layer has no scale to be on.
    """
    names = {"model": found.model, "task": found.task}
    shown = found.answer == "supported"
    ratio = np.exp(found.line["log_drift"].astype(float))
    rows = found.line.assign(part="curve", ratio=ratio, shown=shown, **names).drop(
        columns="log_drift"
    )
    if shown:
        s, low, high = found.stable_rank
        label = (
            f"{100 * found.ratio(found.half)[0]:.0f} % of sr(W), s* = {s:.3g} [{low:.3g}, "
            f"{high:.3g}]"
        )
        ends = dict(zip(("ratio", "low", "high"), found.ratio(found.half), strict=True))
    else:
        label, ends = None, dict.fromkeys(("ratio", "low", "high"), 1.0)
    mark = names | ends | {"part": "threshold", "label": label, "shown": shown}
    return pd.concat([rows, pd.DataFrame([mark])], ignore_index=True)


def steps_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Drift over steps, one line per learning rate and rank, seeds averaged."""
    moved = frames.drifts[frames.drifts["step"].gt(0)].merge(frames.trials[LABELS], on="trial")
    if moved.empty:
        return None
    moved["method"] = [
        series_name(m, s) for m, s in zip(moved["method"], moved["scaling"], strict=True)
    ]
    keys = ["model", "task", "method", "rank", "learning_rate"]
    moved, note = thinned(moved, keys)
    rows = moved.groupby([*keys, "step"], dropna=False, as_index=False).agg(
        log_drift=("log_drift", "median"), trials=("trial", "nunique")
    )
    rows = rows.assign(ratio=np.exp(rows["log_drift"]), rate=rows["learning_rate"].map(rate_name))
    rows["line"] = rows["method"] + " " + rows["rank"].astype(str) + " " + rows["rate"]
    rows = panels(rows.drop(columns=["log_drift", "learning_rate"]))
    steps = log_axis(rows["step"], form="~g", grid=False)
    ratios = log_axis(rows["ratio"], form="~g", grid=True, shown=1)
    x = alt.X(
        "step:Q",
        title="optimiser step",
        scale=alt.Scale(type="log", nice=False, padding=6),
        axis=steps,
    )
    y = alt.Y("ratio:Q", title=RATIO, scale=_ratio_scale(rows["ratio"]), axis=ratios)
    tips = tooltips(
        ("rate", "learning rate"), ("rank", "r", "d"), ("method", "method"), ("step", "step", "d")
    )
    tips += tooltips(("ratio", "sr after / before", ".3~g"), ("trials", "trials", "d"))
    methods = sorted(rows["method"].unique())
    dashed = alt.StrokeDash("method:N", title="method", scale=alt.Scale(domain=methods))
    dash = dashed if len(methods) > 1 else alt.Undefined
    lines = alt.Chart().encode(
        x=x, y=y, color=rate_colour(moved["learning_rate"]), detail="line:N", tooltip=tips
    )
    layers = [
        lines.mark_line(strokeWidth=1.4, opacity=0.8).encode(strokeDash=dash),
        lines.mark_circle(size=40, opacity=0),  # unseen, larger targets for the tooltip
    ]
    filters = ("model", "task", "method", "rank")
    return Figure(
        "steps",
        "Drift over the course of training",
        "Median over layers and seeds, one line per learning rate and rank, both axes "
        "logarithmic; the "
        "filters above and the "
        f"tooltips tell ranks apart.{note}",
        "Line charts, one per task: relative stable rank of the effective weight against "
        "optimiser step.",
        faceted(layers, rows, own_scales=("y",)),
        filters,
    )


def thinned(
    moved: pd.DataFrame, keys: list[str], most_rows: int = MOST_ROWS
) -> tuple[pd.DataFrame, str]:
    """At most `MOST_LINES` lines and `most_rows` points: ranks are dropped from the middle, then
    steps."""
    note = ""
    ranks = sorted(moved["rank"].dropna().unique())
    while len(ranks) > 2 and moved.groupby(keys, dropna=False).ngroups > MOST_LINES:
        ranks = [*ranks[:-1][::2], ranks[-1]]
        moved = moved[moved["rank"].isna() | moved["rank"].isin(ranks)]
        note = " Drawn for r = " + ", ".join(str(r) for r in ranks) + "."
    steps = np.sort(moved["step"].unique())
    most = max(3, most_rows // moved.groupby(keys, dropna=False).ngroups)
    if len(steps) > most:
        place = np.unique(np.geomspace(1, len(steps), most).round().astype(int)) - 1
        moved = moved[moved["step"].isin(steps[place])]
    return moved, note
