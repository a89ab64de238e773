"""The style of figures and their data: colours, fonts, the limit on rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
MOST_ROWS = 5000  # rows of one figure: above this a page gets heavy, so aggregate first

# At least 20 apart in CIELAB under each common colour deficiency (tests/report/test_colours.py);
# at least 3:1 against white and the dark page.
SERIES = ["#0090fc", "#d87800", "#548460", "#a83c84", "#846024", "#9c84cc"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
REFERENCE = "#808080"
FULL_NAME = "full fine-tuning"
# From slow to fast: lightness rises steadily, and both ends are visible on white and dark pages.
RAMP = ["#7e46d0", "#9d58bd", "#f50f7f", "#d9585d", "#c28117", "#96a364"]
HEAT = "viridis"
INK = "currentColor"  # in SVG: the page's text colour, light or dark

PANEL_WIDTH, PANEL_HEIGHT, PANELS_PER_ROW = 235, 210, 3
# of a long title both ends: names of one study often begin alike
TITLE = "length(datum.label) > 44 ? slice(datum.label, 0, 20) + '…' + slice(datum.label, -22) : "
TITLE += "datum.label"


@dataclass(frozen=True)
class Figure:
    """A chart with its file name, title, caption and text alternative."""

    name: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]
    filters: tuple[str, ...] = ("model", "task")


def inline(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """`rows` as a chart's data: five significant digits, None for unknown values."""
    assert len(rows) <= MOST_ROWS, f"{len(rows)} rows in one figure; aggregate first"
    table = rows.astype(object).where(rows.notna(), None)
    return [
        {str(key): _short(value) for key, value in row.items()} for row in table.to_dict("records")
    ]


def _short(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def panels(rows: pd.DataFrame, metric: pd.Series | None = None) -> pd.DataFrame:
    """`rows` with a column ``panel``: the task, the model if there are several, the metric if it is
    plotted."""
    name = rows["task"].astype(str)
    if rows["model"].nunique() > 1:
        name = name + " · " + rows["model"].astype(str)
    if metric is not None:
        name = name + " (" + rows["task"].map(metric).astype(str).str.replace("_", " ") + ")"
    return rows.assign(panel=name)


def faceted(
    layers: list[alt.Chart],
    rows: pd.DataFrame,
    *,
    own_scales: tuple[str, ...] = (),
    order: list[str] | None = None,
    height: int = PANEL_HEIGHT,
    overhead: int = 78,
    columns: int | None = None,
) -> dict[str, Any]:
    """The Vega-Lite specification of `layers` over `rows`, one panel per ``panel``, in `order` or
    the alphabet's; in rows of `columns` where panels belong together.

    Layers select their rows by transforms. Panels have `own_scales` ("x", "y") if a common scale
    would hide differences. The page filters the rows of the data set ``rows``, and
    sets the number of columns and the width of panels; for that it needs `overhead`, the
    width of a panel's axis in pixels.
    """
    names = order or sorted(rows["panel"].unique())
    together = columns or 1
    columns = columns or (2 if len(names) == 4 else min(PANELS_PER_ROW, len(names)))
    header = alt.Header(
        title=None,
        labelFontSize=12,
        labelFontWeight=600,
        labelLimit=PANEL_WIDTH + 80,
        labelExpr=TITLE,
    )
    panel = alt.Facet("panel:N", header=header, sort=names)
    chart = alt.layer(*layers).properties(width=PANEL_WIDTH, height=height)
    # Flush: panels stand on one grid whatever their axes' labels take, so the
    # room for those is set here.
    figure = chart.facet(
        facet=panel,
        columns=columns,
        data=alt.NamedData("rows"),
        bounds="flush",
        spacing={"column": overhead, "row": 88},
    )
    figure = figure.resolve_axis(x="independent", y="independent")
    if own_scales:
        figure = figure.resolve_scale(**dict.fromkeys(own_scales, "independent"))
    figure = figure.properties(usermeta={"overhead": overhead, "together": together}).configure(
        **look()
    )
    # Data last: Altair copies and validates what it holds at every step.
    return figure.to_dict() | {"datasets": {"rows": inline(rows)}}


def look() -> dict[str, Any]:
    """Vega-Lite's configuration: transparent ground, ink in the page's text colour, quiet grid."""
    faint = {"gridColor": INK, "gridOpacity": 0.12, "domainColor": INK, "domainOpacity": 0.5}
    axis = faint | {
        "tickColor": INK,
        "tickOpacity": 0.5,
        "labelColor": INK,
        "titleColor": INK,
        "titlePadding": 8,
    }
    return {
        "background": "transparent",
        "aria": False,  # the page labels each figure once; labels of marks would not help
        "font": "Helvetica Neue, Helvetica, Arial, sans-serif",
        "axis": axis
        | {
            "labelFontSize": 11,
            "titleFontSize": 11.5,
            "titleFontWeight": 500,
            "labelOverlap": True,
        },
        # Labels at the ends stay inside, so that the titles of adjacent panels are level.
        "axisYQuantitative": {"labelFlush": 7},
        "legend": {
            "labelColor": INK,
            "titleColor": INK,
            "labelFontSize": 11,
            "titleFontSize": 11.5,
            "labelLimit": 260,
            "titleLimit": 400,
        }
        | {"titleFontWeight": 500, "orient": "bottom", "symbolOpacity": 1},
        "header": {"labelColor": INK, "titleColor": INK, "labelAnchor": "start"},
        "title": {"color": INK, "anchor": "start"},
        "view": {"stroke": "transparent"},
        "text": {"color": INK},
    }


def rank_axis(ranks: pd.Series, field: str = "rank") -> alt.X:
    """A logarithmic axis with ticks at the tried ranks."""
    values = sorted({int(r) for r in ranks})
    axis = alt.Axis(values=values, format="d", grid=False)
    scale = alt.Scale(type="log", base=2, nice=False, padding=12)
    return alt.X(f"{field}:Q", title="LoRA rank r", scale=scale, axis=axis)


def named_colours(names: pd.Series, title: str, field: str) -> alt.Color:
    """One colour per name, whichever of them are shown."""
    return alt.Color(f"{field}:N", title=title, scale=named_scale(names))


def named_scale(names: pd.Series) -> alt.Scale:
    """Names in alphabetical order, full fine-tuning last, and their colours."""
    domain = sorted(names.dropna().unique(), key=lambda name: (name == FULL_NAME, name))
    return alt.Scale(
        domain=domain,
        range=[
            REFERENCE if name == FULL_NAME else SERIES[place % len(SERIES)]
            for place, name in enumerate(domain)
        ],
    )


def named_shapes(names: pd.Series, title: str, field: str) -> alt.Shape:
    """One shape per name as well: for colour-blind readers and for grey prints."""
    domain = sorted(names.dropna().unique())
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(domain))]
    return alt.Shape(f"{field}:N", title=title, scale=alt.Scale(domain=domain, range=shapes))


def rate_colour(shown: Any, tried: Any) -> alt.Color:
    """Learning rates in order, from slow to fast, as names: their column is ``rate``. A rate has
    one colour in all figures of a study, whose rates are `tried`; the legend has those `shown`."""
    every = sorted(set(tried))
    colours = dict(zip(every, ramp(len(every)), strict=True))
    rates = sorted(set(shown))
    scale = alt.Scale(
        domain=[rate_name(rate) for rate in rates], range=[colours[rate] for rate in rates]
    )
    return alt.Color("rate:N", title="learning rate", scale=scale)


def ramp(count: int) -> list[str]:
    """`count` colours along `RAMP`."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMP], dtype=float)
    at = np.linspace(0, len(RAMP) - 1, max(count, 2))[:count]
    rgb = [np.interp(at, np.arange(len(RAMP)), stops[:, channel]) for channel in range(3)]
    return ["#" + "".join(f"{round(c):02x}" for c in colour) for colour in zip(*rgb, strict=True)]


def rate_name(rate: float) -> str:
    """1e-4, 3.2e-4: two digits, no padding."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def series_name(method: str, scaling: Any) -> str:
    """The name of a configuration in legends, filters and tables."""
    if method == "full":
        return FULL_NAME
    return f"LoRA, {rule_name(scaling)}" if pd.notna(scaling) else "LoRA"


def series_names(rows: pd.DataFrame) -> list[str]:
    """`series_name` of every row."""
    return [series_name(m, s) for m, s in zip(rows["method"], rows["scaling"], strict=True)]


def rule_name(scaling: str) -> str:
    """The notation of a scaling rule: α/r, α/√r."""
    return scaling.replace("alpha", "α").replace("sqrt(r)", "√r")


def tooltips(*fields: tuple[str, str] | tuple[str, str, str]) -> list[alt.Tooltip]:
    """Lines of a tooltip: (field, title), or (field, title, number format)."""
    return [
        alt.Tooltip(f"{field[0]}:Q", title=field[1], format=field[2])
        if len(field) == 3
        else alt.Tooltip(f"{field[0]}:N", title=field[1])
        for field in fields
    ]


def hollow(names: pd.Series, field: str, title: str | None = None) -> dict[str, Any]:
    """The fill of points whose stroke is `named_colours` of the same, with its `title`: none where
    one seed stands alone (column ``seeds``)."""
    fill = alt.Fill(f"{field}:N", title=title, scale=named_scale(names))
    one = "datum.seeds == 1"
    return {"fill": fill, "fillOpacity": alt.condition(one, alt.value(0), alt.value(1))}


def seeds_words(seeds: pd.Series, *, of: str = "") -> str:
    """A caption's sentence on the number of seeds: of hollow and filled points, or of a cell or a
    line (`of`)."""
    known = seeds.dropna()
    if known.empty:
        return ""
    low, high = int(known.min()), int(known.max())
    if high == 1:
        return " One seed each: no spread between repetitions is known."
    if low == high:
        return f" {low} seeds each."
    if of:
        return f" {low} to {high} seeds {of}; the tooltips say how many."
    if low == 1:
        return f" Hollow: one seed; filled: up to {high}."
    return f" {low} to {high} seeds each."


def log_axis(values: pd.Series, *, form: str, grid: bool, shown: float | None = None) -> alt.Axis:
    """An axis for a logarithmic scale: ticks at 1, 2, 5, 10 ... if three fit, else Vega's own.

    `shown` is also marked.
    """
    low, high = min(values.min(), shown or np.inf), max(values.max(), shown or 0)
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.sort(np.outer(decades, [1, 2, 5]).ravel())
    ticks = ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)]
    if len(ticks) < 3:
        return alt.Axis(format=form, grid=grid, tickCount=5)
    return alt.Axis(format=form, grid=grid, values=[float(f"{tick:.3g}") for tick in ticks])
