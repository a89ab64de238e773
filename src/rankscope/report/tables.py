"""The tables of a report, but for those of drift (``drift_tables``)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import at_best, kind
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import CONFIGURATION
from rankscope.report.drift_tables import (
    alignment_table,
    attained_table,
    continued_table,
    contrasts_table,
    dynamics_table,
    halfway_table,
    slopes_table,
    thresholds_table,
)
from rankscope.report.interventions import interventions_table
from rankscope.report.maps import short_names
from rankscope.report.table import RANK, WHERE, Column, Table, interval_column
from rankscope.report.theme import rate_name, series_names
from rankscope.report.trials_table import trials_table

# tables with values of the metric, or differences of it
OF_A_METRIC = {
    "configurations", "settings", "thresholds", "attained", "slopes", "continued", "halfway",
    "interventions", "trials",
}  # fmt: skip


def tables(frames: Frames, conclusions: Conclusions) -> list[Table]:
    """The tables for which this study has rows."""
    made = (
        configurations_table(frames, conclusions),
        settings_table(conclusions),
        growth_table(conclusions),
        thresholds_table(conclusions),
        attained_table(conclusions),
        slopes_table(conclusions),
        dynamics_table(conclusions),
        continued_table(conclusions),
        contrasts_table(conclusions),
        halfway_table(conclusions),
        alignment_table(conclusions),
        rates_table(conclusions),
        interventions_table(conclusions),
        design_table(conclusions),
        layers_table(frames),
        trials_table(frames),  # the last one stands open on the page
    )
    lower = frames.trials.loc[~frames.trials["greater_is_better"].astype(bool), "metric"].unique()
    direction = f" Lower is better: {', '.join(lower)}." if len(lower) else ""
    return [
        replace(table, caption=table.caption + direction) if table.name in OF_A_METRIC else table
        for table in made
        if len(table.rows)
    ]


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """LoRA by rank, then full fine-tuning."""
    return rows.sort_values(
        ["model", "task", "method", "scaling", "rank"],
        ascending=[True, True, False, True, True],
        kind="stable",
    )


def configurations_table(frames: Frames, conclusions: Conclusions) -> Table:
    """One row per configuration at its best learning rate."""
    picked = frames.chosen
    spectra = (
        at_best(picked, frames.spectra, "dW")
        .groupby("trial", as_index=False)["stable_rank"]
        .median()
    )
    steps = picked[["trial", "best_step"]].merge(
        frames.drifts, left_on=["trial", "best_step"], right_on=["trial", "step"]
    )
    measured = picked.merge(spectra, on="trial", how="left").merge(
        steps[["trial", "log_drift", "rho"]], on="trial", how="left"
    )
    medians = measured.groupby(CONFIGURATION, dropna=False, as_index=False)[
        ["stable_rank", "log_drift", "rho", "seconds"]
    ].median()
    rows = conclusions.learning_rates.merge(medians, on=CONFIGURATION, how="left")
    rows["percent"] = 100 * np.expm1(rows["log_drift"].astype(float))
    at_rate = [*CONFIGURATION, "learning_rate"]
    marked = frames.trials[at_rate].assign(one_answer=frames.one_answer["at_best"])
    same = marked.groupby(at_rate, dropna=False, as_index=False)[["one_answer"]].sum()
    rows = rows.merge(same.astype({n: rows[n].dtype for n in at_rate}), on=at_rate, how="left")
    rows["edge"] = rows["edge"].where(rows["edge"].ne("none"))
    rows["series"] = series_names(rows)
    return Table(
        "configurations",
        "Every configuration at its best learning rate",
        "Mean and standard deviation over seeds of the best validation metric; medians over layers "
        "and seeds of the rest. One answer: trials whose best evaluation gives every row the same, "
        "so that its metric is a constant answer's.",
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
            *([Column("one_answer", "one answer", ".0f")] if rows["one_answer"].any() else []),
            Column("stable_rank", "sr(ΔW)", ".2f"),
            Column("percent", "drift, %", "+.1f"),
            Column("rho", "σ₁(ΔW) / σ₁(W)", ".2f"),
            Column("seconds", "seconds", ".1f"),
        ),
        _ordered(rows),
    )


def settings_table(conclusions: Conclusions) -> Table:
    """Every configuration that was trained in several settings, beside each other."""
    rows = conclusions.settings
    if len(rows):
        rows = rows.assign(series=series_names(rows))
    return Table(
        "settings",
        "Settings beside each other",
        "Each at its own best learning rate and checkpoints. sr(ΔW): geometric mean over layers "
        "and seeds; ratio and difference to the setting named, paired by seed; 95 % intervals "
        "over seeds.",
        (
            *WHERE,
            Column("series", "method"),
            RANK,
            Column("setting", "setting"),
            Column("learning_rate", "learning rate", rate_name),
            Column("value", "best", ".3f"),
            Column("seeds", "seeds", ".0f"),
            interval_column("stable_rank", "sr(ΔW)", ".2f"),
            Column("size", "‖ΔW‖ / ‖W‖", ".3f"),
            Column("rho", "σ₁(ΔW) / σ₁(W)", ".2f"),
            Column("against", "against"),
            interval_column("ratio", "ratio of sr(ΔW)", ".2f"),
            interval_column("difference", "difference of best", "+.3f"),
        ),
        rows,
    )


def growth_table(conclusions: Conclusions) -> Table:
    """H1 per model, task and scaling."""
    return Table(
        "growth",
        "Growth of the stable rank",
        "At the ranks of 2 and more that all seeds of a row share, of configurations that "
        "learnt: sr(ΔW) at the largest "
        "rank over that at the smallest, and b of sr(ΔW) = c r^b, with 95 % intervals over "
        "what is resampled; the p-value "
        "of b = 1/2, adjusted for all rows by Holm's method; percentiles of sr(ΔW) over "
        "layers, ranks and seeds.",
        (
            *WHERE,
            Column("scaling", "scale"),
            Column("kind", "kind of layer"),
            Column("ranks", "ranks"),
            Column("seeds", "seeds"),
            interval_column("ratio", "sr, largest / smallest r", ".3f"),
            interval_column("b", "b", ".3f"),
            Column("p_holm", "p, b = 1/2", ".3g"),
            Column("clusters", "clusters", ".0f", printed=False),
            Column("cluster", "of", printed=False),
            Column("p10", "sr, 10 %", ".2f"),
            Column("p50", "50 %", ".2f"),
            Column("p90", "90 %", ".2f"),
            Column("utilisation_at_highest", "sr / r at largest", ".3f"),
        ),
        conclusions.growth.groups,
    )


def rates_table(conclusions: Conclusions) -> Table:
    """H5 per configuration."""
    rows = conclusions.rates.configurations
    if len(rows):
        rows = rows.assign(series=series_names(rows))
    return Table(
        "best_rates",
        "Best learning rates",
        "Top of a parabola in the logarithm of the rate, with its 95 % interval over seeds; "
        "and LoRA's over full "
        "fine-tuning's. Where the best tried rate is at the edge of the grid there is none.",
        (
            *WHERE,
            Column("series", "method"),
            RANK,
            Column("best", "best rate", rate_name, ends=("low", "high")),
            Column("seeds", "seeds", ".0f"),
            Column("edge", "edge of the grid"),
            Column("to_full", "times full", ".1f"),
        ),
        rows,
    )


def layers_table(frames: Frames) -> Table:
    """Every layer at the best learning rate and checkpoint, medians over seeds."""
    picked = frames.chosen
    keys = ["model", "task", "method", "scaling", "rank", "layer"]
    rows = at_best(picked, frames.spectra, "dW")
    rows = rows.assign(rank=rows["rank"].astype(float))
    wanted = [
        "stable_rank",
        "lower",
        "upper",
        "spectral_norm",
        "frobenius_norm",
        "effective_rank",
        "m",
        "n",
    ]
    table = rows.groupby(keys, dropna=False, as_index=False)[wanted].median()
    for matrix, name in (("W", "base"), ("W+dW", "moved")):
        other = at_best(picked, frames.spectra, matrix)
        other = other.assign(rank=other["rank"].astype(float), **{name: other["stable_rank"]})
        table = table.merge(
            other.groupby(keys, dropna=False, as_index=False)[name].median(), on=keys, how="left"
        )
    table["percent"] = 100 * (table["moved"] / table["base"] - 1)
    table["used"] = table["stable_rank"] / table["rank"]
    table["series"] = series_names(table)
    return Table(
        "layers",
        "Every layer at the best learning rate and checkpoint",
        "Medians over seeds; σ₁ is the largest singular value of ΔW. The CSV has sr(ΔW)'s bounds.",
        (
            *WHERE,
            Column("series", "method"),
            RANK,
            Column("name", "layer"),
            Column("layer", "layer", printed=False),
            Column("base", "sr(W)", ".2f"),
            Column("stable_rank", "sr(ΔW)", ".3f"),
            Column("lower", "lower", ".3f", printed=False),
            Column("upper", "upper", ".3f", printed=False),
            Column("used", "sr(ΔW) / r", ".3f"),
            Column("effective_rank", "effective rank", ".2f"),
            Column("moved", "sr(W + ΔW)", ".2f"),
            Column("percent", "drift, %", "+.1f"),
            Column("spectral_norm", "σ₁(ΔW)", ".3g"),
            Column("frobenius_norm", "Frobenius norm", ".3g"),
        ),
        _ordered(table.assign(kind=kind(table["layer"]), name=short_names(table["layer"]))),
    )


def design_table(conclusions: Conclusions) -> Table:
    """What the study's design can answer."""
    return Table(
        "design",
        "What this design can answer",
        "Per hypothesis and task, whatever the results: the seeds, ranks, rates and evaluations "
        "that an answer needs, and the power to see a loss (a closed form).",
        (
            Column("hypothesis", "hypothesis"),
            *WHERE,
            Column("answerable", "answerable"),
            Column("reason", "because"),
        ),
        pd.DataFrame([vars(check) for check in conclusions.design]),
    )
