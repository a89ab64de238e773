"""One small picture per hypothesis for the first screen, drawn when the page is written, so that it
shows before any script runs.

Each model and task has one colour in all pictures (`places`). Lines for H1, H2 and H5, intervals
beside a reference for H3, H4 and H6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from markupsafe import Markup

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.frames import Frames
from rankscope.analysis.settings import by_setting
from rankscope.report.miniature import (
    Drawn,
    colour,
    forest,
    linear,
    lines,
    log,
    reference_line,
    svg,
)
from rankscope.report.theme import SERIES, rate_name


@dataclass(frozen=True)
class Sketch:
    """A picture as SVG, its text alternative, and the name of its axes."""

    svg: Markup
    alt: str
    says: str


def places(frames: Frames) -> list[tuple[str, str]]:
    """(name, colour) of every model, with its setting where there are several, and task."""
    names = sorted(set(_place(by_setting(frames).trials)))
    return [(name, SERIES[at % len(SERIES)]) for at, name in enumerate(names)]


def sketches(frames: Frames, conclusions: Conclusions) -> dict[str, Sketch]:
    """Hypothesis -> its picture, if the study has data for one."""
    frames = by_setting(frames)
    colours = dict(places(frames))
    found = {}
    for hypothesis, draw in DRAWN.items():
        drawn = draw(frames, conclusions, colours) if colours else None
        if drawn is not None:
            chart, words, says = drawn
            found[hypothesis] = Sketch(svg(chart, f"sketch-{hypothesis}"), words, says)
    return found


Draw = Callable[[Frames, Conclusions, dict[str, str]], Drawn | None]


def _growth(frames: Frames, conclusions: Conclusions, colours: dict[str, str]) -> Drawn | None:
    points = conclusions.growth.points
    if points.empty or points["rank"].nunique() < 2:
        return None
    rows = points.assign(place=_place(points, frames))
    rows = rows.groupby(["place", "scaling", "rank"], dropna=False, as_index=False).agg(
        y=("stable_rank", "median")
    )
    low, high = float(rows["rank"].min()), float(rows["rank"].max())
    top = max(4.0, 2 * float(rows["y"].max()))
    base = min(1.0, float(rows["y"].min()))
    x, y = log("rank", [low, high], [low, high]), log("y", [base, top], [base, top], form=".2~g")
    line = pd.DataFrame({"rank": [low, min(top, high)], "y": [low, min(top, high)]})
    inside = low < top  # else sr = r lies above all of it
    layers = [reference_line(line, x, y)] if inside else []
    layers += lines(rows, x, y, colours, detail="scaling:N")
    return (
        alt.layer(*layers),
        f"The stable rank of the update from rank {low:g} to {high:g}, one line per task"
        f"{'; dotted: as large as the rank' * inside}.",
        f"sr(ΔW) against r{'; dotted: sr = r' * inside}",
    )


def _threshold(frames: Frames, conclusions: Conclusions, colours: dict[str, str]) -> Drawn | None:
    """The fitted lines of shown thresholds; if there are none, the loss with its interval."""
    found = [t for t in conclusions.thresholds if t.gain > 0]
    if not found:
        return None
    where = _place(pd.DataFrame([{"model": t.model, "task": t.task} for t in found]), frames)
    shown = [(t, place) for t, place in zip(found, where, strict=True) if t.answer == "supported"]
    if not shown:
        rows = [
            {"place": place, "x": t.loss.estimate, "low": t.loss.low, "high": t.loss.high}
            for t, place in zip(found, where, strict=True)
        ]
        return forest(
            pd.DataFrame(rows),
            colours,
            "The loss of the metric over the drifts that were visited, with 95 % intervals.",
            "loss of the metric with drift",
        )
    fitted = pd.concat(
        [
            pd.DataFrame(
                {
                    "place": place,
                    "x": np.exp(t.line["log_drift"].astype(float)),
                    "y": (t.line["value"].astype(float) - t.constant)
                    / (t.gain if t.greater_is_better else -t.gain),
                }
            )
            for t, place in shown
        ],
        ignore_index=True,
    )
    ends = ("x", "low", "high")
    marks = pd.DataFrame(
        [
            {"place": place, "y": 0.5, **dict(zip(ends, t.ratio(t.half), strict=True))}
            for t, place in shown
        ]
    )
    low, high = min(0.5, float(fitted["x"].min())), max(1.0, float(fitted["x"].max()))
    marks["low"] = marks["low"].clip(lower=low)
    x = log("x", [low, high], [low, high], form=".2~g")
    y = linear("y", [-0.15, 1.15], [0, 1], form="%")
    level = pd.DataFrame({"x": [low, high], "y": [0.5, 0.5]})
    held = alt.Chart(marks).encode(y=y, color=colour(colours))
    layers = [
        reference_line(level, x, y),
        *lines(fitted, x, y, colours, points=False),
        held.mark_rule(strokeWidth=3, opacity=0.5).encode(x=alt.X("low:Q"), x2="high:Q"),
        held.mark_point(size=40, filled=True, opacity=1).encode(x=x),
    ]
    return (
        alt.layer(*layers),
        "The fitted share of the gain that is kept against the ratio of stable ranks, one line per "
        "task where a threshold is shown; a point with its interval where half of it is lost.",
        "gain kept against sr(W + ΔW) / sr(W)",
    )


def _dynamics(frames: Frames, conclusions: Conclusions, colours: dict[str, str]) -> Drawn | None:
    rows = conclusions.dynamics.tasks
    if not len(rows):
        return None
    rows = rows.assign(place=_place(rows, frames)).rename(
        columns={"metric_after": "x", "metric_after_low": "low", "metric_after_high": "high"}
    )
    return forest(
        rows,
        colours,
        "Change of the metric per e-fold of drift past the knot, with 95 % intervals.",
        "metric per e-fold of drift past the knot",
    )


def _alignment(frames: Frames, conclusions: Conclusions, colours: dict[str, str]) -> Drawn | None:
    rows = conclusions.alignment.contrasts
    if not len(rows):
        return None
    rows = rows.assign(place=_place(rows, frames))
    if rows["contrast"].notna().any():
        # the largest rank and the first rule represent a task: figure and table have all
        kept = rows[rows["contrast"].notna()].sort_values(["scaling", "rank"])
        kept = kept.groupby("place", as_index=False).tail(1).rename(columns={"contrast": "x"})
        return forest(
            kept,
            colours,
            "Cosine of LoRA and full fine-tuning less that of two full fine-tunings, seeds "
            "different, at the largest rank, with 95 % intervals.",
            "cosine with full, less full with full",
        )
    rows = rows.rename(columns={"same_seed": "y"}).dropna(subset=["y"])
    if rows.empty or rows["rank"].nunique() < 2:
        return None
    low, high = float(rows["rank"].min()), float(rows["rank"].max())
    x, y = log("rank", [low, high], [low, high]), linear("y", [0, 1], [0, 1], form="g")
    layers = lines(rows, x, y, colours, detail="scaling:N")
    return (
        alt.layer(*layers),
        "Cosine of LoRA and full fine-tuning of one seed against the rank, one line per task.",
        "cosine with full, one seed, against r",
    )


def _rates(frames: Frames, conclusions: Conclusions, colours: dict[str, str]) -> Drawn | None:
    rows = conclusions.rates.configurations
    rows = rows[rows["best"].notna()] if len(rows) else rows
    if not len(rows):
        return None
    rows = rows.assign(place=_place(rows, frames), y=rows["best"])
    lora, full = rows[rows["method"].eq("lora")], rows[rows["method"].eq("full")]
    if lora.empty or lora["rank"].nunique() < 2:
        return None
    low, high = float(lora["rank"].min()), float(lora["rank"].max())
    ends = [10 ** np.floor(np.log10(rows["y"].min())), 10 ** np.ceil(np.log10(rows["y"].max()))]
    x, y = log("rank", [low, high], [low, high]), log("y", ends, ends, form="~e")
    layers = lines(lora, x, y, colours, detail="scaling:N")
    if len(full):
        dashed = alt.Chart(full).mark_rule(strokeDash=[4, 3], strokeWidth=1.4)
        layers.append(dashed.encode(y=y, color=colour(colours)))
    return (
        alt.layer(*layers),
        f"The best learning rate against the rank, {rate_name(ends[0])} to {rate_name(ends[1])}, "
        f"one line per task and scale{'; dashed: full fine-tuning' * bool(len(full))}.",
        f"best rate against r{'; dashed: full' * bool(len(full))}",
    )


def _interventions(
    frames: Frames, conclusions: Conclusions, colours: dict[str, str]
) -> Drawn | None:
    rows = []
    for verdict in conclusions.verdicts:
        for one in verdict.numbers.get("interventions", []):
            if "regain_own" not in one:  # no edit of these trials says it
                continue
            name = _place(pd.DataFrame([one]), frames).iloc[0]
            for key, words, sign in (("regain", "restored", 1), ("loss", "scaled", -1)):
                ends = [sign * _float(one[f"{key}_own{end}"]) for end in ("", "_low", "_high")]
                rows.append(
                    {
                        "place": name,
                        "label": words,
                        "x": ends[0],
                        "low": min(ends),
                        "high": max(ends),
                    }
                )
    rows = [row for row in rows if np.isfinite(row["x"])]
    if not rows:
        return None
    return forest(
        pd.DataFrame(rows),
        colours,
        "Change of the metric with sr(W) restored in collapsed trials, and with good trials scaled "
        "to the same drift; 95 % intervals.",
        "change: sr restored, and lowered",
    )


DRAWN: dict[str, Draw] = {
    "H1": _growth,
    "H2": _threshold,
    "H3": _dynamics,
    "H4": _alignment,
    "H5": _rates,
    "H6": _interventions,
}


def _place(rows: pd.DataFrame, frames: Frames | None = None) -> pd.Series:
    """The name of a model and task, as in `places`."""
    models = (frames.trials if frames is not None else rows)["model"].nunique()
    task = rows["task"].astype(str)
    return task + " · " + rows["model"].astype(str) if models > 1 else task


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)
