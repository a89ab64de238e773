"""Figures of the drift of W + dW: performance against drift with the threshold, and drift over
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
    REFERENCE,
    Figure,
    faceted,
    log_axis,
    panels,
    rate_colour,
    rate_name,
    series_name,
    series_names,
    tooltips,
)

MARK = "#d1495b"
MOST_POINTS = 3000  # checkpoints that are drawn
MOST_LINES = 150  # trials that are drawn over time
RATIO = "sr(W + ΔW) / sr(W)"


def threshold_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Performance against drift: paths of trials, brackets, and the threshold with its interval if
    there is one."""
    points = frames.checkpoints
    points = points[points["method"].eq("lora")]
    if points.empty:
        return None
    total = len(points)
    points = points.iloc[:: -(-total // MOST_POINTS)]
    drawn = [_checkpoint_rows(points)]
    for found in conclusions.thresholds:
        drawn += [_bracket_rows(found, drawn[0]), _threshold_rows(found)]
    rows = pd.concat([part for part in drawn if len(part)], ignore_index=True)
    rows = panels(rows, metric_names(frames))
    shown = sum(t.answer == "supported" for t in conclusions.thresholds)
    line = (
        "Line: the fitted plateau and decline. Red: the drift at which half of the gain over a "
        "constant answer is lost, with its 95 % interval. Both are drawn only where H2 is "
        f"supported ({shown} of {len(conclusions.thresholds)})."
        if shown
        else "No fitted line is drawn: H2 is supported on none of these tasks."
    )
    thinned = (
        f" {len(points):,} of {total:,} checkpoints are drawn; all are used."
        if len(points) < total
        else ""
    )
    return Figure(
        "threshold",
        "Performance against the drift of the stable rank",
        "Each point is an evaluated checkpoint of a LoRA trial; thin lines join one trial's. "
        "1 is no drift, 0.5 a stable rank that has halved. Pale points have drifted by less than a "
        f"tenth; of them only the references enter the fit. {line} Brackets below: per rank, scale "
        "and seed the last drift at which half the gain was held, at any rate, and the next that "
        f"was visited.{thinned}",
        "Scatter plots, one per task: validation metric against relative stable rank on a "
        "logarithmic axis.",
        faceted(
            _threshold_layers(rows, points, frames.trials["learning_rate"]),
            rows,
            own_scales=("x", "y"),
        ),
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
    where = ["part", "model", "task", "method", "ratio", "rho", "value", "trial"]
    return points[[*where, "rate", "rank", "step", "seed"]]


def _threshold_layers(
    rows: pd.DataFrame, points: pd.DataFrame, tried: pd.Series
) -> list[alt.Chart]:
    axis = log_axis(rows["ratio"], form=".5~g", grid=False, shown=1)
    x = alt.X(
        "ratio:Q",
        title="stable rank after / before, " + RATIO,
        scale=ratio_scale(rows["ratio"]),
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
        for name in ("near", "point", "curve", "threshold", "bracket")
    }
    seen = alt.Chart().transform_filter("datum.part == 'near' || datum.part == 'point'")
    colour = rate_colour(points["learning_rate"], tried)
    paths = seen.mark_line(strokeWidth=0.7, opacity=0.22).encode(
        x=x, y=y, color=colour, detail="trial:N", order="step:Q"
    )
    few = rows["trial"].nunique() <= MOST_LINES
    bracket_tips = tooltips(("rank", "r", "d"), ("method", "scale"), ("seed", "seed", "d"))
    bracket_tips += tooltips(("high", "held at", ".3~g"), ("low", "next visited", ".3~g"))
    return [
        part["threshold"].mark_rect(color=MARK, opacity=0.18).encode(x=alt.X("low:Q"), x2="high:Q"),
        *([paths] if few else []),
        part["near"].mark_circle(size=22, opacity=0.3).encode(x=x, y=y, color=colour, tooltip=tips),
        part["point"]
        .mark_circle(size=22, opacity=0.65)
        .encode(x=x, y=y, color=colour, tooltip=tips),
        part["bracket"]
        .mark_rule(color=REFERENCE, strokeWidth=1.6)
        .encode(x=alt.X("low:Q"), x2="high:Q", y=y, tooltip=bracket_tips),
        part["bracket"]
        .mark_tick(color=REFERENCE, thickness=1.4, height=5)
        .encode(x=alt.X("high:Q"), y=y),
        part["curve"].mark_line(color=INK, strokeWidth=1.8).encode(x=x, y=y),
        part["threshold"]
        .mark_rule(color=MARK, strokeWidth=1.8)
        .encode(x=x, tooltip=tooltips(("label", "threshold"))),
    ]


def ratio_scale(ratios: pd.Series) -> alt.Scale:
    """A logarithmic scale that shows 1 (no drift) on every panel."""
    above = ratios.max() > 1 / ratios.min()
    return alt.Scale(
        type="log", nice=False, padding=8, **({"domainMin": 1} if above else {"domainMax": 1})
    )


def _bracket_rows(found: Threshold, points: pd.DataFrame) -> pd.DataFrame:
    """One bracket a line, stacked below the points; those without a next drift have no right
    end and are left out."""
    pairs = found.brackets
    pairs = pairs[np.isfinite(pairs["next"].astype(float))] if len(pairs) else pairs
    if not len(pairs):
        return pd.DataFrame()
    pairs = pairs.sort_values(["scaling", "rank", "seed"], na_position="last")
    values = points.loc[
        points["model"].eq(found.model) & points["task"].eq(found.task), "value"
    ].astype(float)
    floor = float(values.min())
    room = (float(values.max()) - floor) * min(0.25, 0.02 * len(pairs) + 0.03)
    high, low = (np.exp(found.sign * pairs[name].to_numpy(float)) for name in ("last", "next"))
    return pd.DataFrame(
        {
            "part": "bracket",
            "model": found.model,
            "task": found.task,
            "method": [series_name("lora", rule) for rule in pairs["scaling"]],
            "rank": pairs["rank"].to_numpy(),
            "seed": pairs["seed"].to_numpy(),
            "high": high,
            "low": low,
            "value": floor - room * np.linspace(0.25, 1, len(pairs)),
        }
    )


def _threshold_rows(found: Threshold) -> pd.DataFrame:
    """The fitted line and the threshold with its interval; nothing if H2 is not supported."""
    if found.answer != "supported":
        return pd.DataFrame()
    names = {"model": found.model, "task": found.task}
    ratio = np.exp(found.line["log_drift"].astype(float))
    rows = found.line.assign(part="curve", ratio=ratio, **names).drop(columns="log_drift")
    s, low, high = found.stable_rank
    label = (
        f"{100 * found.ratio(found.half)[0]:.0f} % of sr(W), s* = {s:.3g} [{low:.3g}, {high:.3g}]"
    )
    ends = dict(zip(("ratio", "low", "high"), found.ratio(found.half), strict=True))
    mark = names | ends | {"part": "threshold", "label": label}
    return pd.concat([rows, pd.DataFrame([mark])], ignore_index=True)


def steps_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Drift over steps, one line per learning rate and rank, averaged over seeds."""
    moved = frames.drifts[frames.drifts["step"].gt(0)].merge(frames.trials[LABELS], on="trial")
    if moved.empty:
        return None
    moved["method"] = series_names(moved)
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
    y = alt.Y("ratio:Q", title=RATIO, scale=ratio_scale(rows["ratio"]), axis=ratios)
    tips = tooltips(
        ("rate", "learning rate"), ("rank", "r", "d"), ("method", "method"), ("step", "step", "d")
    )
    tips += tooltips(("ratio", "sr after / before", ".3~g"), ("trials", "trials", "d"))
    methods = sorted(rows["method"].unique())
    dashed = alt.StrokeDash("method:N", title="method", scale=alt.Scale(domain=methods))
    dash = dashed if len(methods) > 1 else alt.Undefined
    colour = rate_colour(moved["learning_rate"], frames.trials["learning_rate"])
    lines = alt.Chart().encode(x=x, y=y, color=colour, detail="line:N", tooltip=tips)
    layers = [
        lines.mark_line(strokeWidth=1.4, opacity=0.8).encode(strokeDash=dash),
        lines.mark_circle(size=40, opacity=0),  # invisible, larger targets for tooltips
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
