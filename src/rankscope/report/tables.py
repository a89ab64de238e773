"""The tables of a report: what each is made of."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankscope.analysis.alignment import MEASURES
from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import at_best, kind
from rankscope.analysis.frames import CONFIGURATION, Frames
from rankscope.analysis.selection import chosen
from rankscope.report.table import Column, Table
from rankscope.report.theme import rate_name, series_name


def tables(frames: Frames, conclusions: Conclusions) -> list[Table]:
    """The tables that this study has rows for."""
    made = (
        configurations_table(frames, conclusions),
        growth_table(conclusions),
        thresholds_table(conclusions),
        dynamics_table(conclusions),
        continued_table(conclusions),
        alignment_table(conclusions),
        layers_table(frames),
    )
    return [table for table in made if len(table.rows)]


WHERE = (Column("model", "model"), Column("task", "task"))
RANK = Column("rank", "r", ".0f")


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """LoRA by rank, then full fine-tuning."""
    return rows.sort_values(
        ["model", "task", "method", "scaling", "rank"],
        ascending=[True, True, False, True, True],
        kind="stable",
    )


def configurations_table(frames: Frames, conclusions: Conclusions) -> Table:
    """One row per configuration at its best learning rate."""
    picked = chosen(frames.trials)
    spectra = at_best(picked, frames.spectra, "dW").groupby("trial", as_index=False)["stable_rank"].median()
    steps = picked[["trial", "best_step"]].merge(
        frames.drifts, left_on=["trial", "best_step"], right_on=["trial", "step"]
    )
    measured = picked.merge(spectra, on="trial", how="left").merge(
        steps[["trial", "drift"]], on="trial", how="left"
    )
    medians = measured.groupby(CONFIGURATION, dropna=False, as_index=False)[
        ["stable_rank", "drift", "seconds"]
    ].median()
    rows = conclusions.learning_rates.merge(medians, on=CONFIGURATION, how="left")
    rows["percent"] = 100 * np.expm1(rows["drift"].astype(float))
    rows["edge"] = rows["edge"].where(rows["edge"].ne("none"))
    rows["series"] = [series_name(m, s) for m, s in zip(rows["method"], rows["scaling"], strict=True)]
    return Table(
        "configurations",
        "Every configuration at its best learning rate",
        "Mean and standard deviation over seeds of the best validation metric; medians over layers and "
        "seeds of the rest.",
        (
            *WHERE,
            Column("series", "method"),
            RANK,
            Column("learning_rate", "learning rate", rate_name),
            Column("edge", "edge of the grid"),
            Column("metric", "metric"),
            Column("value", "best", ".3f"),
            Column("spread", "sd", ".3f"),
            Column("seeds", "seeds", ".0f"),
            Column("diverged", "diverged", ".0f"),
            Column("stable_rank", "sr(ΔW)", ".2f"),
            Column("percent", "drift, %", "+.1f"),
            Column("seconds", "seconds", ".1f"),
        ),
        _ordered(rows),
    )


def growth_table(conclusions: Conclusions) -> Table:
    """H1 per model, task and scaling."""
    return Table(
        "growth",
        "Growth of the stable rank, sr(ΔW) = c r^b",
        "b with its 95 % interval, the p-value of b = 1/2 (adjusted for all rows by Holm's method), what is resampled, "
        "and percentiles of sr(ΔW) over layers, ranks and seeds.",
        (
            *WHERE,
            Column("scaling", "scale"),
            Column("kind", "kind of layer"),
            Column("c", "c", ".2f"),
            Column("b", "b", ".3f"),
            Column("b_low", "from", ".3f"),
            Column("b_high", "to", ".3f"),
            Column("p", "p, b = 1/2", ".3g"),
            Column("p_holm", "adjusted", ".3g"),
            Column("clusters", "clusters", ".0f"),
            Column("cluster", "of"),
            Column("p10", "sr, 10 %", ".2f"),
            Column("p50", "50 %", ".2f"),
            Column("p90", "90 %", ".2f"),
            Column("rank_high", "highest r", ".0f"),
            Column("utilisation_at_highest", "sr / r there", ".3f"),
        ),
        conclusions.growth.groups,
    )


def thresholds_table(conclusions: Conclusions) -> Table:
    """H2 per model and task."""
    rows = pd.DataFrame(next(v for v in conclusions.verdicts if v.hypothesis == "H2").numbers["thresholds"])
    return Table(
        "thresholds",
        "The threshold of the stable rank",
        "s* is the stable rank of W + ΔW past which performance declines, with its 95 % interval; the "
        "p-values test against no "
        "decline and against a decline from the start; the larger one is adjusted for all pairs of model and task by "
        "Holm's method. Checkpoints with updates too small to have learnt are left out.",
        (
            *WHERE,
            Column("reason", "finding"),
            Column("direction", "sr(W + ΔW)"),
            Column("percent", "drift, %", "+.1f"),
            Column("stable_rank", "s*", ".2f"),
            Column("stable_rank_low", "from", ".2f"),
            Column("stable_rank_high", "to", ".2f"),
            Column("base", "sr(W)", ".2f"),
            Column("p_flat", "p, no decline", ".3f"),
            Column("p_straight", "p, no plateau", ".3f"),
            Column("p_holm", "adjusted", ".3f"),
            Column("trials", "trials", ".0f"),
            Column("checkpoints", "checkpoints", ".0f"),
            Column("learning", "not yet learnt", ".0f"),
            Column("learnt_from", "‖ΔW‖ / ‖W‖ from", ".3f"),
        ),
        rows,
    )


def dynamics_table(conclusions: Conclusions) -> Table:
    """H3 per method, learning rate and rank."""
    rows = conclusions.dynamics.by_rate
    rows = rows.assign(percent=100 * np.expm1(rows["final"].astype(float)))
    return Table(
        "dynamics",
        "Drift over training",
        "Median drift at the end, and mean rank correlations inside trials: drift with step, and metric "
        "with drift after the best "
        "evaluation.",
        (
            Column("method", "method"),
            Column("learning_rate", "learning rate", rate_name),
            RANK,
            Column("trials", "trials", ".0f"),
            Column("percent", "final drift, %", "+.1f"),
            Column("growing", "drift with step", "+.2f"),
            Column("falling", "metric with drift", "+.2f"),
        ),
        rows,
    )


def continued_table(conclusions: Conclusions) -> Table:
    """H3: the same configurations with a longer budget, means over seeds."""
    keys = ["model", "task", "method", "scaling", "rank", "learning_rate", "budget"]
    rows = conclusions.continued.pairs
    values = ["drift_once", "drift", "last_once", "last", "best_once", "best"]
    rows = rows.groupby(keys, dropna=False, as_index=False).agg(
        seeds=("seed", "nunique"), **{name: (name, "mean") for name in values}
    )
    for name in ("drift_once", "drift"):
        rows[name] = 100 * np.expm1(rows[name].astype(float))
    return Table(
        "continued",
        "Continued training",
        "The same configuration, rate and seed with the study's budget (once) and with a longer one, the schedule "
        "stretched. Means over seeds; intervals of the changes are in the conclusions.",
        (
            *WHERE,
            Column("method", "method"),
            Column("scaling", "scale"),
            RANK,
            Column("learning_rate", "learning rate", rate_name),
            Column("budget", "budget", "g"),
            Column("seeds", "seeds", ".0f"),
            Column("drift_once", "drift, %, once", "+.1f"),
            Column("drift", "longer", "+.1f"),
            Column("last_once", "last metric, once", ".3f"),
            Column("last", "longer", ".3f"),
            Column("best_once", "best metric, once", ".3f"),
            Column("best", "longer", ".3f"),
        ),
        rows,
    )


def alignment_table(conclusions: Conclusions) -> Table:
    """H4 per model, task, scaling and rank."""
    keys = ["model", "task", "scaling", "rank"]
    long = conclusions.alignment.by_rank
    rows = long.pivot_table(index=keys, columns="measure", values="mean", dropna=False, observed=True)
    present = long[keys].drop_duplicates()
    rows = present.merge(rows.reset_index(), on=keys, how="left").reindex(columns=[*keys, *MEASURES])
    return Table(
        "alignment",
        "LoRA beside full fine-tuning",
        "Means over layers and seeds. Intervals are in the figure and in the conclusions.",
        (
            *WHERE,
            Column("scaling", "scale"),
            RANK,
            *(Column(key, words, ".3f") for key, words in MEASURES.items()),
        ),
        rows,
    )


def layers_table(frames: Frames) -> Table:
    """Every layer at the best learning rate and checkpoint, medians over seeds."""
    picked = chosen(frames.trials)
    keys = ["model", "task", "method", "scaling", "rank", "layer"]
    rows = at_best(picked, frames.spectra, "dW")
    rows = rows.assign(rank=rows["rank"].astype(float))
    wanted = ["stable_rank", "lower", "upper", "spectral_norm", "frobenius_norm", "effective_rank", "m", "n"]
    table = rows.groupby(keys, dropna=False, as_index=False)[wanted].median()
    for matrix, name in (("W", "base"), ("W+dW", "moved")):
        other = at_best(picked, frames.spectra, matrix)
        other = other.assign(rank=other["rank"].astype(float), **{name: other["stable_rank"]})
        table = table.merge(
            other.groupby(keys, dropna=False, as_index=False)[name].median(), on=keys, how="left"
        )
    table["percent"] = 100 * (table["moved"] / table["base"] - 1)
    table["used"] = table["stable_rank"] / table["rank"]
    table["series"] = [series_name(m, s) for m, s in zip(table["method"], table["scaling"], strict=True)]
    return Table(
        "layers",
        "Every layer at the best learning rate and checkpoint",
        "Medians over seeds. The bounds enclose sr(ΔW) as measured; σ₁ is the largest singular value of ΔW.",
        (
            *WHERE,
            Column("series", "method"),
            RANK,
            Column("layer", "layer"),
            Column("base", "sr(W)", ".2f"),
            Column("stable_rank", "sr(ΔW)", ".3f"),
            Column("lower", "lower", ".3f"),
            Column("upper", "upper", ".3f"),
            Column("used", "sr(ΔW) / r", ".3f"),
            Column("effective_rank", "effective rank", ".2f"),
            Column("moved", "sr(W + ΔW)", ".2f"),
            Column("percent", "drift, %", "+.1f"),
            Column("spectral_norm", "σ₁(ΔW)", ".3g"),
            Column("frobenius_norm", "Frobenius norm", ".3g"),
        ),
        _ordered(table.assign(kind=kind(table["layer"]))),
    )
