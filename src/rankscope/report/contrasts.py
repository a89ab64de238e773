"""The figure of H4: pairs of different seeds, by cosine, loss barrier and CKA."""

from __future__ import annotations

import altair as alt
import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.frames import Frames
from rankscope.report.curves import dodged
from rankscope.report.theme import (
    Figure,
    faceted,
    named_colours,
    named_shapes,
    rank_axis,
    rule_name,
    series_name,
    tooltips,
)

PAIRS = {"lora_full": "LoRA and full", "full_full": "two full", "lora_lora": "two LoRA"}
MEASURED = {"": "cosine of the updates", "barrier_": "loss barrier at the midpoint", "cka_": "CKA"}


def contrasts_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """How near LoRA's updates come to full ones, beside how near full ones come to each other; a
    panel for each measure that is known."""
    wide = conclusions.alignment.contrasts
    if not len(wide):
        return None
    kept = ["model", "task", "scaling", "rank", "seeds"]
    several = wide["model"].nunique() > 1
    long = [
        wide[kept].assign(
            value=wide[f"{prefix}{key}"].astype(float),
            pair=words,
            panel=wide["task"] + (" · " + wide["model"] if several else "") + ": " + measure,
        )
        for prefix, measure in MEASURED.items()
        for key, words in PAIRS.items()
        if f"{prefix}{key}" in wide
    ]
    rows = pd.concat(long, ignore_index=True).dropna(subset=["value"])
    # two full ones alone are no comparison
    beside = rows[rows["pair"].ne(PAIRS["full_full"])]
    rows = rows[rows["panel"].isin(beside["panel"])]
    if rows.empty:
        return None
    rows["rule"] = rows["scaling"].map(rule_name, na_action="ignore")
    rows["method"] = [series_name("lora", rule) for rule in rows["scaling"]]
    rows["place"] = dodged(rows, ["pair", "scaling"])
    dash = alt.StrokeDash("rule:N", title="scale") if rows["rule"].nunique() > 1 else alt.Undefined
    tips = tooltips(
        ("pair", "pairs of"), ("rule", "scale"), ("rank", "r", "d"), ("value", "mean", ".3f")
    )
    tips += tooltips(("seeds", "seeds", "d"))
    base = alt.Chart().encode(
        x=rank_axis(rows["rank"], field="place"),
        y=alt.Y("value:Q", title="mean over layers and pairs", scale=alt.Scale(zero=True)),
        color=named_colours(rows["pair"], "pairs of different seeds", "pair"),
    )
    layers = [
        base.mark_line(strokeWidth=1.8).encode(strokeDash=dash),
        base.mark_point(size=44, filled=True, opacity=1).encode(
            shape=named_shapes(rows["pair"], "pairs of different seeds", "pair"), tooltip=tips
        ),
    ]
    return Figure(
        "contrasts",
        "Is LoRA further from full fine-tuning than full fine-tuning is from itself?",
        "Pairs of different seeds at one rank, means. LoRA is further away where its cosine or CKA "
        "with full fine-tuning lies below that of two full ones, or its loss barrier above.",
        "Line charts against LoRA rank: how near updates of different seeds are, for three kinds "
        "of pairs.",
        faceted(layers, rows.drop(columns=["scaling"]), own_scales=("y",)),
        ("model", "task", "method"),
    )
