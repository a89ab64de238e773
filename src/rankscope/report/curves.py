"""Figures over the nominal rank: growth of the stable rank, performance, alignment with full
fine-tuning."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from rankscope.analysis.alignment import MEASURES
from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import at_best
from rankscope.analysis.frames import Frames
from rankscope.analysis.growth import band
from rankscope.report.theme import (
    INK,
    REFERENCE,
    Figure,
    faceted,
    hollow,
    log_axis,
    named_colours,
    named_scale,
    named_shapes,
    panels,
    rank_axis,
    rule_name,
    seeds_words,
    series_name,
    series_names,
    tooltips,
)

SHOWN = ("cosine", "captured_above_chance", "relative_distance", "norm_ratio")


def growth_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """sr(dW) against r with the diagonal sr = r and the stable rank of the full update."""
    points = conclusions.growth.points
    if points.empty:
        return None
    rows = panels(_growth_rows(frames, points))
    x = rank_axis(points["rank"])
    reach = [min(1.0, rows["p10"].min()), _reach(rows)]
    scale = alt.Scale(type="log", base=2, nice=False, domain=reach)
    ticks = log_axis(pd.Series(reach), form="~g", grid=True)
    y = alt.Y("p50:Q", title="stable rank of the update, sr(ΔW)", scale=scale, axis=ticks)
    colour = named_colours(rows["kind"], "kind of layer", "kind")
    several = points["scaling"].nunique() > 1
    dash = alt.StrokeDash("rule:N", title="scale") if several else alt.Undefined
    part = {
        name: alt.Chart().transform_filter(f"datum.part == '{name}'")
        for name in ("lora", "full", "diagonal", "label")
    }
    lora = part["lora"].encode(x=alt.X("place:Q"), color=colour)
    tips = tooltips(
        ("kind", "layers"), ("rule", "scale"), ("rank", "r", "d"), ("p50", "median sr", ".3~g")
    )
    tips += tooltips(
        ("p10", "10 %", ".3~g"), ("p90", "90 %", ".3~g"), ("utilisation", "sr / r", ".1%"),
    )  # fmt: skip
    tips += tooltips(("seeds", "seeds", "d"))
    layers = [
        part["diagonal"].mark_line(strokeDash=[2, 3], color=REFERENCE).encode(x=x, y=y),
        part["label"]
        .mark_text(text="sr = r", align="left", dx=5, dy=9, fontStyle="italic", color=INK)
        .encode(x=alt.X("rank:Q"), y=alt.Y("p50:Q")),
        part["full"]
        .mark_rule(strokeDash=[7, 3], strokeWidth=1.4, color=REFERENCE)
        .encode(y=y, tooltip=tooltips(("p50", "full fine-tuning, median sr", ".3~g"))),
        lora.mark_rule(strokeWidth=3, opacity=0.4).encode(y="p10:Q", y2="p90:Q"),
        lora.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash),
        lora.mark_point(size=40, opacity=1, strokeWidth=1.4).encode(
            y=y,
            shape=named_shapes(rows["kind"], "kind of layer", "kind"),
            tooltip=tips,
            **hollow(rows["kind"], "kind", "kind of layer"),
        ),
    ]
    b, grown = conclusions.growth.exponent, conclusions.growth.ratio
    dashed = " Dashed: full fine-tuning." if rows["part"].eq("full").any() else ""
    headline = f"In the headline's design the largest rank's stable rank is {grown} times the "
    headline = f" {headline}smallest's (b = {b})." if np.isfinite(grown.estimate) else ""
    return Figure(
        "growth",
        "The stable rank of the update against its nominal rank",
        "Median over layers and seeds at the best learning rate and checkpoint, both axes "
        "logarithmic; bars span the 10th to the 90th percentile. "
        f"{_diagonal_words(rows)}"
        f"{dashed}{headline}{seeds_words(rows['seeds'])}",
        "Line charts, one per task: sr(ΔW) against LoRA rank, both axes logarithmic.",
        faceted(layers, rows),
        ("model", "task", "method", "kind"),
    )


def _growth_rows(frames: Frames, points: pd.DataFrame) -> pd.DataFrame:
    lora = band(points, ["model", "task", "scaling", "kind", "rank"]).assign(part="lora")
    lora["rule"] = lora["scaling"].map(rule_name, na_action="ignore")
    lora["method"] = [series_name("lora", rule) for rule in lora["scaling"]]
    lora["place"] = dodged(lora, ["kind", "scaling"])
    full = at_best(frames.chosen, frames.spectra, "dW")
    full = full[full["method"].eq("full")]
    full = full.groupby(["model", "task"], as_index=False).agg(p50=("stable_rank", "median"))
    full = full.assign(part="full", method=series_name("full", None))
    seeds = points.groupby(["model", "task", "scaling", "kind", "rank"], dropna=False)
    lora["seeds"] = seeds["seed"].nunique().to_numpy()
    reach = _reach(pd.concat([lora, full]))
    ends = points.groupby(["model", "task"])["rank"].agg(["min", "max"]).reset_index()
    ends = ends[ends["min"] < reach]  # else sr = r lies above the frame
    label = ends[["model", "task"]].assign(rank=ends["max"].clip(upper=0.7 * reach))
    ends = ends.melt(["model", "task"], value_name="rank")
    # to the frame and no further: Chromium draws only some of a dashed line that is clipped
    ends["rank"] = ends["rank"].clip(upper=reach)
    ends = ends.assign(part="diagonal", p50=ends["rank"])
    label = label.assign(part="label", p50=label["rank"])
    return pd.concat([lora, full, ends, label], ignore_index=True)


def _diagonal_words(rows: pd.DataFrame) -> str:
    if rows["part"].eq("diagonal").any():
        return "Dotted: sr = r, full use of the rank, which leaves the frame."
    return "sr = r, full use of the rank, lies above the frame."


def _reach(rows: pd.DataFrame) -> float:
    """The end of the axis: a little above the largest stable rank shown."""
    own = rows[rows["part"].isin(["lora", "full"])]
    return 1.15 * float(np.nanmax([2.0, own["p90"].max(), own["p50"].max()]))


def dodged(rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """Ranks shifted sideways per series, so that bars do not overlap."""
    series = rows.groupby(by, dropna=False).ngroup()
    return rows["rank"].astype(float) * 1.05 ** (series - series.max() / 2)


def performance_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Best performance against rank, with full fine-tuning as a line."""
    trials = frames.chosen
    trials = trials[trials["best"].notna()]
    if trials.empty:
        return None
    keys = ["model", "task", "method", "scaling", "rank"]
    rows = trials.groupby([*keys, "learning_rate"], dropna=False, as_index=False).agg(
        mean=("reported", "mean"),
        low=("reported", "min"),
        high=("reported", "max"),
        seeds=("seed", "nunique"),
    )
    rows["series"] = series_names(rows)
    rows["place"] = dodged(rows, ["series"])
    rows = rows.assign(part=rows["method"], method=rows["series"])
    rows = panels(pd.concat([rows, _room(rows)], ignore_index=True), metric_names(frames))
    dashed = "Dashed: full fine-tuning. " if rows["part"].eq("full").any() else ""
    return Figure(
        "performance",
        "Best performance against rank",
        "Mean over seeds at each configuration's best learning rate; thin bars span the seeds. "
        f"{dashed}Numbers: seeds.{seeds_words(rows['seeds'])}",
        "Line charts, one per task: best validation metric against LoRA rank, full fine-tuning "
        "as a dashed line.",
        faceted(_performance_layers(rows), rows, own_scales=("y",)),
        ("model", "task", "method"),
    )


def _performance_layers(rows: pd.DataFrame) -> list[alt.Chart]:
    colour = alt.Color("series:N", title=None, scale=named_scale(rows["series"]))
    x = rank_axis(rows["rank"].dropna(), field="place")
    y = alt.Y("mean:Q", title="best validation metric", scale=alt.Scale(zero=False, padding=8))
    tips = tooltips(
        ("series", "method"),
        ("rank", "r", "d"),
        ("mean", "mean", ".3f"),
        ("low", "lowest seed", ".3f"),
    )
    tips += tooltips(
        ("high", "highest seed", ".3f"),
        ("learning_rate", "learning rate", ".1e"),
        ("seeds", "seeds", "d"),
    )
    part = {
        name: alt.Chart().transform_filter(f"datum.part == '{name}'")
        for name in ("lora", "full", "room")
    }
    lora = part["lora"].encode(x=x, color=colour)
    return [
        part["full"]
        .mark_rule(strokeDash=[7, 3], strokeWidth=1.8)
        .encode(y=y, color=colour, tooltip=tips),
        lora.mark_rule(strokeWidth=1.4, opacity=0.6).encode(y="low:Q", y2="high:Q"),
        lora.mark_line(strokeWidth=1.8).encode(y=y),
        lora.mark_point(size=36, opacity=1, strokeWidth=1.4).encode(
            y=y, tooltip=tips, **hollow(rows["series"], "series")
        ),
        lora.mark_text(dy=-9, fontSize=9.5).encode(y="high:Q", text="seeds:N"),
        part["room"].mark_point(opacity=0).encode(y=y),
    ]


def _room(rows: pd.DataFrame) -> pd.DataFrame:
    """Invisible points (part "room") a twentieth above and below values that differ by less than a
    hundredth: their panel would have an axis of noise, or one with a single tick."""
    tasks = rows.groupby(["model", "task"], as_index=False).agg(
        low=("low", "min"), high=("high", "max")
    )
    reach = np.maximum(tasks["low"].abs(), tasks["high"].abs()) / 20
    near = tasks["high"] - tasks["low"] < reach / 5
    ends = [tasks["low"] - reach, tasks["high"] + reach]
    return pd.concat([tasks[near].assign(part="room", mean=end[near]) for end in ends])[
        ["model", "task", "part", "mean"]
    ]


def alignment_figure(frames: Frames, conclusions: Conclusions) -> Figure | None:
    """Similarity of LoRA and full updates against rank, for pairs of one seed."""
    rows = conclusions.alignment.by_rank
    rows = rows[rows["same_seed"].astype(bool)]
    rows = rows[rows["measure"].isin(SHOWN) & rows["mean"].notna()]
    if rows.empty:
        return None
    several = rows["model"].nunique() > 1
    rows = rows.assign(
        panel=rows["measure"].map(MEASURES),
        series=rows["task"] + (" · " + rows["model"] if several else ""),
        rule=rows["scaling"].map(rule_name, na_action="ignore"),
        method=[series_name("lora", rule) for rule in rows["scaling"]],
        place=dodged(rows, ["task", "model", "scaling"]),
    )
    colour = named_colours(rows["series"], "task", "series")
    dash = (
        alt.StrokeDash("rule:N", title="scale") if rows["scaling"].nunique() > 1 else alt.Undefined
    )
    y = alt.Y("mean:Q", title="mean over layers and seeds", scale=alt.Scale(zero=True))
    tips = tooltips(
        ("task", "task"),
        ("model", "model"),
        ("rule", "scale"),
        ("rank", "r", "d"),
        ("mean", "mean", ".3f"),
    )
    tips += tooltips(("low", "95 % from", ".3f"), ("high", "to", ".3f"))
    base = alt.Chart().encode(x=rank_axis(rows["rank"], field="place"), color=colour)
    layers = [
        base.mark_rule(strokeWidth=3, opacity=0.4).encode(y="low:Q", y2="high:Q"),
        base.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash),
        base.mark_point(size=44, filled=True, opacity=1).encode(
            y=y, shape=named_shapes(rows["series"], "task", "series"), tooltip=tips
        ),
    ]
    order = [MEASURES[name] for name in SHOWN if rows["measure"].eq(name).any()]
    return Figure(
        "alignment",
        "The LoRA update beside the update of full fine-tuning",
        "Two equal updates have cosine 1, captured energy 1, relative distance 0 and norm "
        "ratio 1. Captured "
        "energy is counted "
        "above what random subspaces of the same dimension capture, so there is none at full "
        "dimension. "
        "Pairs of one seed; H4 is answered by pairs of different seeds. Bars: 95 % intervals.",
        "Line charts against LoRA rank, one per measure of how near the two updates are, one "
        "line per task.",
        faceted(layers, rows, order=order, own_scales=("y",)),
        ("model", "task", "method"),
    )


def metric_names(frames: Frames) -> pd.Series:
    """The metric's name per task, with "lower is better" if so."""
    tasks = frames.trials.drop_duplicates("task").set_index("task")
    return tasks["metric"] + tasks["greater_is_better"].map({True: "", False: ", lower is better"})
