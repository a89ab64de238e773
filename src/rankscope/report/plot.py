"""Figures as Altair charts, for notebooks: ``rankscope.plot.growth("runs")``.

Each takes a `Store`, its path, or the folder ``data`` beside a report, and returns an
``altair.Chart`` that can be shown, changed and saved; `spectrum` takes the table that `measure`
returned. `conclusions` avoids a second analysis if you have it (``rankscope.analyze``).
``ValueError``, one line, if the study has no data for the figure.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from rankscope.analysis.conclusions import Conclusions, conclude
from rankscope.analysis.frames import Frames
from rankscope.report import curves as rank_curves
from rankscope.report import drifts, maps, training
from rankscope.report.from_store import open_frames
from rankscope.report.maps import short_names
from rankscope.report.theme import Figure, look, named_colours, named_shapes, tooltips
from rankscope.store.store import Store

MOST_LAYERS = 400
KINDS = {
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "r90": "rank for 90 %",
    "r99": "rank for 99 %",
    "r": "nominal rank",
}

__all__ = ["curves", "growth", "rates", "spectrum", "threshold"]


def growth(store: str | Path | Store, *, conclusions: Conclusions | None = None) -> alt.Chart:
    """The stable rank of the update against its nominal rank (H1)."""
    return _chart(rank_curves.growth_figure, store, conclusions)


def threshold(store: str | Path | Store, *, conclusions: Conclusions | None = None) -> alt.Chart:
    """Performance against the drift of the stable rank (H2)."""
    return _chart(drifts.threshold_figure, store, conclusions)


def rates(store: str | Path | Store, *, conclusions: Conclusions | None = None) -> alt.Chart:
    """Best performance for every learning rate and rank."""
    return _chart(maps.rates_figure, store, conclusions)


def curves(store: str | Path | Store, *, conclusions: Conclusions | None = None) -> alt.Chart:
    """Metric and evaluation loss over the steps."""
    return _chart(training.curves_figure, store, conclusions)


def spectrum(table: Any) -> alt.Chart:
    """Per layer of a `rankscope.measure` table: stable rank, effective rank, the ranks that hold 90
    and 99 % of the update's energy, and the nominal rank."""
    frame = table.to_pandas()
    rows = frame[frame["matrix"].eq("dW") & frame["stable_rank"].notna()]
    if rows.empty:
        raise ValueError(
            f"{table.source}: expected an update with a stable rank; found none. A checkpoint "
            "needs measure(..., base=MODEL)"
        )
    if len(rows) > MOST_LAYERS:
        raise ValueError(
            f"{table.source}: expected at most {MOST_LAYERS} layers in one chart; found "
            f"{len(rows)}. Choose some with measure(..., layers=REGEX)"
        )
    rows = rows.assign(name=short_names(rows["layer"]))
    order = list(dict.fromkeys(rows["name"]))
    rows = rows.melt(["layer", "name"], list(KINDS), "what", "value").dropna(subset=["value"])
    rows = rows.assign(what=rows["what"].map(KINDS), value=rows["value"].astype(float))
    kinds = pd.Series(list(KINDS.values()))
    y = alt.Y("name:N", title="layer", sort=order, axis=alt.Axis(labelLimit=220))
    x = alt.X("value:Q", title="rank", scale=alt.Scale(type="log", nice=False, padding=10))
    tips = tooltips(("layer", "layer"), ("what", "measure"), ("value", "value", ".4~g"))
    points = alt.Chart(rows).mark_point(size=44, filled=True, opacity=1)
    chart = points.encode(
        x=x,
        y=y,
        color=named_colours(kinds, "measure", "what"),
        shape=named_shapes(kinds, "measure", "what"),
        tooltip=tips,
    )
    title = f"{table.source}: updates"
    return chart.properties(width=380, title=title).configure(**look())


def _chart(
    draw: Callable[[Frames, Conclusions], Figure | None],
    store: str | Path | Store,
    conclusions: Conclusions | None,
) -> alt.Chart:
    found = open_frames(store)
    figure = draw(found, conclusions if conclusions is not None else conclude(found))
    if figure is None:
        name = draw.__name__.removesuffix("_figure")
        raise ValueError(f"{store}: expected trials for the figure {name}; found too few of them")
    return alt.Chart.from_dict(figure.spec)
