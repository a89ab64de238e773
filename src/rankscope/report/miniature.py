"""Small pictures: lines over a rank or a ratio, and intervals beside a reference, as SVG."""

from __future__ import annotations

import re
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from markupsafe import Markup

from rankscope.report.theme import REFERENCE, VEGA_LITE, look

WIDTH, HEIGHT = 188, 62
ROW = 15  # pixels of an interval
LONGEST = 14  # letters of a name beside its interval
Drawn = tuple[Any, str, str]  # chart, its words for those who do not see it, what its axes are


def forest(rows: pd.DataFrame, colours: dict[str, str], words: str, says: str) -> Drawn | None:
    rows = rows[rows["x"].notna()]
    if rows.empty:
        return None
    if "label" not in rows:
        long = rows["place"].str.len().max() > LONGEST and len(colours) > 1
        rows = rows.assign(label="" if long else rows["place"])  # then the legend names them
    rows = rows[["place", "label", "x", "low", "high"]].reset_index(drop=True)
    rows = rows.assign(row=[f"{at} {label}" for at, label in enumerate(rows["label"])])
    known = rows[["x", "low", "high"]].to_numpy(dtype=float)
    least, most = min(0.0, float(np.nanmin(known))), max(0.0, float(np.nanmax(known)))
    x = linear("x", [least, most], None, form="~r")
    labels = alt.Axis(
        title=None, ticks=False, domain=False, labelFontSize=10, labelLimit=84, labelPadding=5,
        labelExpr="slice(datum.label, indexof(datum.label, ' ') + 1)",
    )  # fmt: skip
    base = alt.Chart(rows).encode(y=alt.Y("row:O", sort=None, axis=labels), color=colour(colours))
    zero = alt.Chart(pd.DataFrame({"x": [0.0]}))
    layers = [
        zero.mark_rule(strokeDash=[2, 3], color=REFERENCE).encode(x=x),
        base.mark_rule(strokeWidth=3, opacity=0.5).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(size=44, filled=True, opacity=1).encode(x=x),
    ]
    height = min(HEIGHT + 20, max(2, len(rows)) * ROW)
    return alt.layer(*layers).properties(width=WIDTH - 40, height=height), words, says


def lines(
    rows: pd.DataFrame,
    x: alt.X,
    y: alt.Y,
    colours: dict[str, str],
    *,
    detail: str | None = None,
    points: bool = True,
) -> list[Any]:
    fields = [c for c in ("place", "scaling", "rank", "x", "y") if c in rows]
    base = alt.Chart(rows[fields]).encode(x=x, y=y, color=colour(colours))
    base = base.encode(detail=detail) if detail else base
    layers = [base.mark_line(strokeWidth=1.8, clip=True)]
    return [*layers, base.mark_point(size=16, filled=True, opacity=1)] if points else layers


def reference_line(rows: pd.DataFrame, x: alt.X, y: alt.Y) -> Any:
    line = alt.Chart(rows).mark_line(strokeDash=[2, 3], strokeWidth=1.2, color=REFERENCE, clip=True)
    return line.encode(x=x, y=y)


def colour(colours: dict[str, str]) -> alt.Color:
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color("place:N", scale=scale, legend=None)


def log(field: str, domain: list[float], ticks: list[float], form: str = "~g") -> alt.X:
    return _axis(field, alt.Scale(type="log", domain=domain, nice=False), ticks, form)


def linear(field: str, domain: list[float], ticks: list[float] | None, form: str) -> alt.X:
    return _axis(field, alt.Scale(domain=domain, nice=ticks is None), ticks, form)


def _axis(field: str, scale: alt.Scale, ticks: list[float] | None, form: str) -> Any:
    values = alt.Undefined if ticks is None else [float(tick) for tick in ticks]
    axis = alt.Axis(
        values=values, tickCount=3, format=form, grid=False, title=None, labelFontSize=10
    )
    kind = alt.Y if field == "y" else alt.X
    return kind(f"{field}:Q", scale=scale, axis=axis)


def svg(chart: Any, name: str) -> Markup:
    """The chart as SVG; its ids begin with `name`, so that several can stand on one page."""
    if chart.width is alt.Undefined:
        chart = chart.properties(width=WIDTH, height=HEIGHT)
    config = look() | {"padding": 2, "view": {"stroke": "transparent"}}
    spec = chart.configure(**config).to_dict()
    drawn = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    drawn = drawn[drawn.index("<svg") :]
    ids = list(dict.fromkeys(re.findall(r'\bid="([^"]+)"', drawn)))
    for number, old in enumerate(ids):
        drawn = drawn.replace(f'id="{old}"', f'id="{name}-{number}"')
        drawn = drawn.replace(f"url(#{old})", f"url(#{name}-{number})")
    # the page says in words what it shows
    drawn = re.sub(r' (role|aria-\w+)="[^"]*"', "", drawn)
    return Markup(drawn.replace("<svg", '<svg aria-hidden="true"', 1))
