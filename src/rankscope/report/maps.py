"""Heat maps: learning rate by rank, and layer by rank."""

from __future__ import annotations

import altair as alt
import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import at_best, kind
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import CONFIGURATION, sign_of
from rankscope.report.curves import metric_names
from rankscope.report.theme import (
    HEAT,
    INK,
    MOST_ROWS,
    PANEL_HEIGHT,
    Figure,
    faceted,
    panels,
    rate_name,
    rule_name,
    seeds_words,
    series_names,
    tooltips,
)

FULL = "full"
TOP = "#ff4f4f"
ARROWS = {"largest tried": "↑", "smallest tried": "↓"}


def rates_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Best performance for every learning rate and rank, as a share of the task's best gain."""
    trials = frames.trials
    if not trials["best"].notna().any():
        return None
    rows = _rate_cells(frames, conclusions)
    rows = _by_rule(panels(rows, metric_names(frames)))
    rates = [rate_name(rate) for rate in sorted(trials["learning_rate"].unique(), reverse=True)]
    colour = alt.Color(
        "share:Q",
        title="share of the task's best gain",
        scale=alt.Scale(scheme=HEAT, domain=[0, 1], clamp=True),
        legend=alt.Legend(gradientLength=180, format=".0%", tickCount=3),
    )
    tips = tooltips(
        ("column", "r"),
        ("rate", "learning rate"),
        ("value", "mean of best", ".3f"),
        ("share", "of the best gain", ".0%"),
        ("seeds", "seeds", "d"),
    )
    y = alt.Y("rate:O", title="learning rate", sort=rates)
    cell = alt.Chart().encode(
        x=_columns(rows), y=y, tooltip=[*tips, *tooltips(("diverged", "diverged", "d"))]
    )
    known = cell.transform_filter("datum.value != null")
    # dark ink on the light half of the scale
    ink = alt.condition("datum.share > 0.55", alt.value("#101418"), alt.value("#ffffff"))
    size = _digits_size(rows["column"].nunique())
    words = [known.mark_text(fontSize=size).encode(text="words:N", color=ink)] if size else []
    layers = [
        known.mark_rect().encode(color=colour),
        cell.transform_filter("datum.value == null").mark_text(text="×", color=INK),
        cell.transform_filter("datum.picked")
        .mark_rect(filled=False, strokeWidth=3.4)
        .encode(stroke=alt.condition("datum.top", alt.value(TOP), alt.value("#101418"))),
        cell.transform_filter("datum.picked && !datum.top").mark_rect(
            filled=False, strokeWidth=1.2, stroke="#ffffff"
        ),
        *words,
    ]
    none = " Crosses: diverged before the first evaluation." if rows["value"].isna().any() else ""
    edges = (
        " Arrows: the chosen rate is the largest or the smallest tried."
        if rows["edge"].isin(ARROWS).any()
        else ""
    )
    numbers = "Numbers: the metric. " if words else ""
    return Figure(
        "rates",
        "Learning rate and rank",
        "Best validation metric, seeds averaged. Colour: the share of the task's best gain over a "
        f"constant answer, 100 % for the best cell. {numbers}Framed: the rate chosen for that "
        f"rank, in red the best of its panel.{edges}"
        f"{seeds_words(rows['seeds'], of='a cell')}{none}",
        "Heat maps, one per task: performance for every learning rate and rank.",
        faceted(layers, rows.drop(columns=["edge"]), height=max(PANEL_HEIGHT, 30 * len(rates))),
        ("model", "task", "method"),
    )


def _rate_cells(frames: Frames, conclusions: Conclusions) -> pd.DataFrame:
    """One row per configuration and rate: mean, seeds, share of the gain, whether chosen, the
    best of its task, and what is printed in the cell."""
    trials = frames.trials
    cells = [*CONFIGURATION, "learning_rate"]
    broken = trials.assign(broken=trials["status"].eq("diverged"), sign=sign_of(trials))
    rows = broken.groupby(cells, dropna=False, as_index=False).agg(
        value=("best", "mean"),
        seeds=("best", "count"),
        diverged=("broken", "sum"),
        sign=("sign", "first"),
    )
    picked = conclusions.learning_rates[[*cells, "edge"]].assign(picked=True)
    rows = rows.merge(picked, on=cells, how="left")
    rows["picked"] = rows["picked"].eq(True)
    rows = rows.merge(frames.baselines[["model", "task", "constant"]], on=["model", "task"])
    rows["higher"] = rows["sign"] * rows["value"]  # better is higher
    task = rows.groupby(["model", "task"])["higher"]
    best, lowest = task.transform("max"), task.transform("min")
    floor = rows["sign"] * rows["constant"]
    floor = floor.where(floor.lt(best), lowest)  # unknown or never reached
    rows["share"] = ((rows["higher"] - floor) / (best - floor)).where(best.gt(floor), 1.0)
    rows["top"] = rows["higher"].eq(best) & rows["picked"]
    rows = rows.assign(column=_rank_names(rows), rate=rows["learning_rate"].map(rate_name))
    arrows = rows["edge"].where(rows["picked"]).map(ARROWS).fillna("")
    rows["words"] = rows["value"].map(_cell_words) + arrows
    return rows.drop(columns=["constant", "sign", "higher"])


def _cell_words(value: float) -> str:
    """.83, −.02, 1.00: two decimals, without a leading zero."""
    if pd.isna(value):
        return ""
    text = f"{value:z.2f}"
    return text.replace("0.", ".", 1).replace("-", "−") if abs(value) < 1 else text


def _digits_size(columns: int) -> float:
    """The font size of numbers in a panel with so many columns; 0 if there is no room."""
    return 10 if columns <= 6 else 8.5 if columns <= 9 else 7 if columns <= 12 else 0


def layers_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Stable rank of the update for every layer and rank."""
    rows = at_best(frames.chosen, frames.spectra, "dW")
    if rows.empty:
        return None
    keys = ["model", "task", "method", "rank", "scaling", "layer"]
    rows = rows.groupby(keys, dropna=False, as_index=False).agg(
        value=("stable_rank", "median"), seeds=("seed", "nunique")
    )
    rows = rows.assign(
        column=_rank_names(rows), kind=kind(rows["layer"]), name=short_names(rows["layer"])
    )
    rows = _by_rule(panels(rows))
    note = ""
    if len(rows) > MOST_ROWS:
        kept = rows["layer"].drop_duplicates().iloc[:: -(-len(rows) // MOST_ROWS)]
        rows = rows[rows["layer"].isin(kept)]
        note = f" {len(kept)} layers are drawn; the table has all."
    names = sorted(rows["name"].unique(), key=_natural)
    colour = alt.Color(
        "value:Q",
        title="stable rank of the update, sr(ΔW)",
        scale=alt.Scale(scheme=HEAT, type="log"),
        legend=alt.Legend(gradientLength=180, format=".3~g", values=_legend_values(rows["value"])),
    )
    y = alt.Y("name:O", title="layer", sort=names, axis=alt.Axis(labelLimit=150))
    tips = tooltips(
        ("layer", "layer"), ("column", "r"), ("value", "sr(ΔW)", ".3~g"), ("seeds", "seeds", "d")
    )
    cells = alt.Chart().mark_rect().encode(x=_columns(rows), y=y, color=colour, tooltip=tips)
    filters = ("model", "task", "method", "kind")
    overhead = 50 + min(150, 6 * max(len(name) for name in names))
    height = max(PANEL_HEIGHT // 2, min(22, max(10, 400 // len(names))) * len(names))
    rows = rows.drop(columns="rank")
    return Figure(
        "layers",
        "Every layer's update",
        "Stable rank of the update at the best learning rate and checkpoint, median over "
        "seeds; the colour "
        "scale is "
        f"logarithmic.{note}",
        "Heat maps, one per task: stable rank of the update for every layer and rank.",
        faceted([cells], rows, height=height, overhead=overhead),
        filters,
    )


def short_names(layers: pd.Series) -> pd.Series:
    """Layer names without their common parts."""
    parts = layers.astype(str).str.split(".", expand=True)
    varying = parts.loc[:, parts.nunique(dropna=False) > 1]
    if varying.shape[1] == 0:
        return kind(layers)
    words = varying.fillna("").itertuples(index=False)
    return pd.Series([" ".join(word for word in row if word) for row in words], index=layers.index)


def _legend_values(values: pd.Series) -> list[float]:
    """The ends and the middle of a logarithmic scale."""
    low, high = float(values.min()), float(values.max())
    return [low] if low == high else [low, (low * high) ** 0.5, high]


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that orders numbers inside names numerically."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in name.split(" ")]


def _columns(rows: pd.DataFrame) -> alt.X:
    """Ranks as columns, in their order, full fine-tuning last."""
    order = sorted(
        rows["column"].unique(), key=lambda name: (name == FULL, 0 if name == FULL else int(name))
    )
    axis = alt.Axis(labelAngle=0, labelOverlap="greedy")
    return alt.X("column:O", title="LoRA rank r", sort=order, axis=axis)


def _rank_names(rows: pd.DataFrame) -> pd.Series:
    return rows["rank"].astype("Int64").astype("string").fillna(FULL).astype(str)


def _by_rule(rows: pd.DataFrame) -> pd.DataFrame:
    """One panel per scaling rule if there are several; full fine-tuning is in each."""
    rows = rows.assign(method=series_names(rows))
    rules = sorted(rows["scaling"].dropna().unique())
    if len(rules) < 2:
        return rows
    known = rows.dropna(subset="scaling")[["model", "task", "scaling"]].drop_duplicates()
    full = rows[rows["scaling"].isna()].drop(columns="scaling")
    full = full.merge(known, on=["model", "task"], how="left")  # what a task lacks has no panel
    rows = pd.concat([rows[rows["scaling"].notna()], full], ignore_index=True)
    rule = (", " + rows["scaling"].map(rule_name, na_action="ignore")).fillna("")
    return rows.assign(panel=rows["panel"] + rule)
