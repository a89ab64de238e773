"""The figure of H5: the best learning rate against the rank, beside full fine-tuning's."""

from __future__ import annotations

import altair as alt
import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import CONFIGURATION
from rankscope.report.curves import dodged
from rankscope.report.theme import (
    FULL_NAME,
    INK,
    Figure,
    faceted,
    hollow,
    log_axis,
    named_scale,
    panels,
    rank_axis,
    rate_name,
    seeds_words,
    series_names,
    tooltips,
)

EDGES = {"largest tried": "▲", "smallest tried": "▼"}


def optimum_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """The vertex of the parabola with its interval; a triangle if the best tried rate is the
    largest or the smallest."""
    rows = _rows(conclusions)
    if rows.empty:
        return None
    grid = frames.trials["learning_rate"]
    ends = [float(grid.min()), float(grid.max())]
    scale = alt.Scale(type="log", domain=ends, nice=False, padding=8)
    y = alt.Y(
        "value:Q",
        title="best learning rate",
        scale=scale,
        axis=log_axis(pd.Series(ends), form="~e", grid=True),
    )
    x = rank_axis(rows["rank"].dropna(), field="place")
    colour = alt.Color("series:N", title=None, scale=named_scale(rows["series"]))
    tips = tooltips(
        ("series", "method"), ("rank", "r", "d"), ("value", "best rate", ".2~e"),
        ("low", "95 % from", ".2~e"), ("high", "to", ".2~e"), ("seeds", "seeds", "d"),
    )  # fmt: skip
    tips += tooltips(("to_full", "times full", ".1f"), ("edge", "edge of the grid"))
    part = {
        name: alt.Chart().transform_filter(f"datum.part == '{name}'").encode(color=colour)
        for name in ("lora", "full", "lora edge")
    }
    lines = part["lora"].encode(x=x, y=y)
    layers = [
        part["full"].mark_rule(strokeDash=[7, 3], strokeWidth=1.8).encode(y=y, tooltip=tips),
        part["lora"].mark_rule(strokeWidth=3, opacity=0.4, clip=True).encode(
            x=x, y=alt.Y("low:Q"), y2="high:Q"
        ),
        lines.mark_line(strokeWidth=1.6),
        lines.mark_point(size=40, opacity=1, strokeWidth=1.4).encode(
            tooltip=tips, **hollow(rows["series"], "series")
        ),
        part["lora edge"].mark_text(fontSize=11, color=INK).encode(
            x=x, y=y, text="mark:N", tooltip=tips
        ),
    ]  # fmt: skip
    full = f" Dashed: {FULL_NAME}." if rows["part"].eq("full").any() else ""
    edges = (
        " Triangles: the best tried rate is the largest (▲) or the smallest (▼), so that the best "
        "lies outside the grid."
        if rows["part"].eq("lora edge").any()
        else ""
    )
    return Figure(
        "optimum",
        "The best learning rate against the rank",
        "Top of a parabola in the logarithm of the rate, bars: 95 % intervals over seeds. The axis "
        f"is the grid of tried rates.{full}{edges}{seeds_words(rows['seeds'])}",
        "Line charts, one per task, both axes logarithmic: best learning rate against LoRA rank.",
        faceted(layers, rows.drop(columns=["learning_rate", "scaling"])),
        ("model", "task", "method"),
    )


def _rows(conclusions: Conclusions) -> pd.DataFrame:
    """One row per configuration whose best rate is known, or is the largest or smallest tried; none
    without LoRA configurations."""
    rows = conclusions.rates.configurations
    if not len(rows):
        return pd.DataFrame()
    tried = conclusions.learning_rates[[*CONFIGURATION, "learning_rate"]]
    rows = rows.astype({"rank": "float64"}).merge(
        tried.astype({"rank": "float64"}), on=CONFIGURATION, how="left"
    )
    rows["mark"] = rows["edge"].map(EDGES)
    rows["value"] = rows["best"].where(rows["mark"].isna(), rows["learning_rate"])
    rows = rows[rows["value"].notna()]
    if not rows["method"].eq("lora").any():
        return pd.DataFrame()
    rows["series"] = series_names(rows)
    rows["place"] = dodged(rows, ["series"])
    rows["part"] = rows["method"].where(rows["mark"].isna(), rows["method"] + " edge")
    rows["rate"] = rows["learning_rate"].map(rate_name)
    return panels(rows.assign(method=rows["series"]))
