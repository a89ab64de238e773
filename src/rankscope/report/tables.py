"""The tables of a report: what each is made of."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankscope.analysis.alignment import MEASURES
from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import at_best, kind
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import CONFIGURATION
from rankscope.report.table import Column, Table
from rankscope.report.theme import rate_name, series_name


def tables(frames: Frames, conclusions: Conclusions) -> list[Table]:
    """The tables that this study has rows for."""
    made = (
        configurations_table(frames, conclusions),
        growth_table(conclusions),
        thresholds_table(conclusions),
        attained_table(conclusions),
        slopes_table(conclusions),
        dynamics_table(conclusions),
        continued_table(conclusions),
        contrasts_table(conclusions),
        alignment_table(conclusions),
        rates_table(conclusions),
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
    rows["edge"] = rows["edge"].where(rows["edge"].ne("none"))
    rows["series"] = [
        series_name(m, s) for m, s in zip(rows["method"], rows["scaling"], strict=True)
    ]
    return Table(
        "configurations",
        "Every configuration at its best learning rate",
        "Mean and standard deviation over seeds of the best validation metric; medians over "
        "layers and "
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
            Column("rho", "σ₁(ΔW) / σ₁(W)", ".2f"),
            Column("seconds", "seconds", ".1f"),
        ),
        _ordered(rows),
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
            Column("ratio", "sr, largest / smallest r", ".3f"),
            Column("ratio_low", "from", ".3f"),
            Column("ratio_high", "to", ".3f"),
            Column("b", "b", ".3f"),
            Column("b_low", "from", ".3f"),
            Column("b_high", "to", ".3f"),
            Column("p_holm", "p, b = 1/2", ".3g"),
            Column("clusters", "clusters", ".0f"),
            Column("cluster", "of"),
            Column("p10", "sr, 10 %", ".2f"),
            Column("p50", "50 %", ".2f"),
            Column("p90", "90 %", ".2f"),
            Column("utilisation_at_highest", "sr / r at largest", ".3f"),
        ),
        conclusions.growth.groups,
    )


def thresholds_table(conclusions: Conclusions) -> Table:
    """H2 per model and task."""
    shares = (
        "half_ratio",
        "half_ratio_low",
        "half_ratio_high",
        "first_ratio",
        "first_ratio_low",
        "first_ratio_high",
    )
    rows = conclusions.thresholds_frame()
    for name in (*shares, "premise", "first_share") if len(rows) else ():
        rows[name] = 100 * rows[name].astype(float)
    return Table(
        "thresholds",
        "The drift at which the gain is lost",
        "In per cent of sr(W): where half of LoRA's gain over a constant answer is lost, and "
        "where the smallest share that "
        "can be told from noise is, with 95 % intervals over resampled trials (0: open). The "
        "loss is that of the fitted "
        "line over the drifts that were visited. Premise: the gain of models near sr(W) in per "
        "cent of the best gain.",
        (
            *WHERE,
            Column("answer", "answer"),
            Column("reason", "because"),
            Column("direction", "sr(W + ΔW)"),
            Column("half_ratio", "half lost at, %", ".1f"),
            Column("half_ratio_low", "from", ".1f"),
            Column("half_ratio_high", "to", ".1f"),
            Column("stable_rank", "s*", ".2f"),
            Column("base", "sr(W)", ".2f"),
            Column("first_share", "share, %", ".0f"),
            Column("first_ratio", "lost at, %", ".1f"),
            Column("first_ratio_low", "from", ".1f"),
            Column("first_ratio_high", "to", ".1f"),
            Column("loss", "loss", ".3f"),
            Column("loss_low", "from", ".3f"),
            Column("loss_high", "to", ".3f"),
            Column("gain", "gain near sr(W)", ".3f"),
            Column("premise", "premise, %", ".0f"),
            Column("constant", "constant answer", ".3f"),
            Column("source", "known from"),
            Column("trials", "trials", ".0f"),
            Column("checkpoints", "checkpoints", ".0f"),
        ),
        rows,
    )


def attained_table(conclusions: Conclusions) -> Table:
    """H2: the best attained near sr(W) against the best attained beyond a ratio."""
    parts = [
        t.attained.assign(model=t.model, task=t.task)
        for t in conclusions.thresholds
        if len(t.attained)
    ]
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if len(rows):
        rows = rows[rows["configurations"].gt(0)]
    return Table(
        "attained",
        "Best attained near sr(W) against beyond a ratio",
        "Paired by configuration (rank and scaling rule), the rate chosen on each side by the "
        "mean over seeds; loss = near - "
        "beyond, with Student's 95 % interval over configurations.",
        (
            *WHERE,
            Column("ratio", "beyond sr(W + ΔW) / sr(W)", ".2f"),
            Column("configurations", "configurations", ".0f"),
            Column("near", "near", ".3f"),
            Column("beyond", "beyond", ".3f"),
            Column("loss", "loss", "+.3f"),
            Column("low", "from", "+.3f"),
            Column("high", "to", "+.3f"),
            Column("p", "p", ".2g"),
        ),
        rows,
    )


def slopes_table(conclusions: Conclusions) -> Table:
    """H3 per model and task."""
    columns = []
    for key, words in (("metric_before", "metric, before"), ("metric_after", "metric, past"),
                                                             ("loss_before", "loss, before"),
                       ("loss_after", "loss, past")):  # fmt: skip
        columns += [
            Column(key, words, "+.3f"),
            Column(f"{key}_low", "from", "+.3f"),
            Column(f"{key}_high", "to", "+.3f"),
        ]
    return Table(
        "slopes",
        "Validation against drift inside trials",
        "Change of the metric and of the evaluation loss per e-fold of sr(W + ΔW), before and "
        "past the knot at half of sr(W); "
        "one intercept per trial, intervals clustered by trial. Correlation: of the drift's "
        "size with the step.",
        (
            *WHERE,
            Column("growing", "correlation", "+.2f"),
            Column("trials", "trials", ".0f"),
            *columns,
        ),
        conclusions.dynamics.tasks,
    )


def dynamics_table(conclusions: Conclusions) -> Table:
    """H3 per method, learning rate and rank."""
    rows = conclusions.dynamics.by_rate
    rows = rows.assign(percent=100 * np.expm1(rows["final"].astype(float)))
    return Table(
        "dynamics",
        "Drift over training",
        "Median drift at the end, and the mean rank correlation of drift with step inside trials.",
        (
            Column("method", "method"),
            Column("learning_rate", "learning rate", rate_name),
            RANK,
            Column("trials", "trials", ".0f"),
            Column("percent", "final drift, %", "+.1f"),
            Column("growing", "drift with step", "+.2f"),
        ),
        rows,
    )


def continued_table(conclusions: Conclusions) -> Table:
    """H3: the same configurations with a longer budget, means over seeds."""
    keys = ["model", "task", "method", "scaling", "rank", "learning_rate", "budget"]
    rows = conclusions.continued.pairs
    values = ["log_drift_once", "log_drift", "last_once", "last", "best_once", "best"]
    rows = rows.groupby(keys, dropna=False, as_index=False).agg(
        seeds=("seed", "nunique"), **{name: (name, "mean") for name in values}
    )
    for name in ("drift_once", "drift"):
        rows[name] = 100 * np.expm1(rows[f"log_{name}"].astype(float))
    return Table(
        "continued",
        "Continued training",
        "The same configuration, rate and seed with the study's budget (once) and with a "
        "longer one, the schedule "
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
    keys = ["model", "task", "scaling", "rank", "same_seed"]
    long = conclusions.alignment.by_rank
    rows = long.pivot_table(
        index=keys, columns="measure", values="mean", dropna=False, observed=True
    )
    present = long[keys].drop_duplicates()
    rows = present.merge(rows.reset_index(), on=keys, how="left").reindex(
        columns=[*keys, *MEASURES]
    )
    rows["pairs"] = np.where(rows["same_seed"].astype(bool), "one seed", "different seeds")
    return Table(
        "alignment",
        "LoRA beside full fine-tuning",
        "Means over layers and pairs of trials. Intervals are in the figure and in the "
        "conclusions.",
        (
            *WHERE,
            Column("scaling", "scale"),
            RANK,
            Column("pairs", "pairs of"),
            *(Column(key, words, ".3f") for key, words in MEASURES.items()),
        ),
        rows,
    )


def contrasts_table(conclusions: Conclusions) -> Table:
    """H4: pairs of different seeds."""
    return Table(
        "contrasts",
        "Cosines of updates of different seeds",
        "Means over layers and pairs of different seeds, the difference of LoRA and full from "
        "two full fine-tunes with its "
        "95 % interval over seeds; pairs of one seed stand beside for comparison only.",
        (
            *WHERE,
            Column("scaling", "scale"),
            RANK,
            Column("lora_full", "LoRA and full", ".3f"),
            Column("full_full", "two full", ".3f"),
            Column("lora_lora", "two LoRA", ".3f"),
            Column("contrast", "difference", "+.3f"),
            Column("low", "from", "+.3f"),
            Column("high", "to", "+.3f"),
            Column("seeds", "seeds", ".0f"),
            Column("same_seed", "LoRA and full, one seed", ".3f"),
            Column("norm_ratio", "norm ratio", ".2f"),
            Column("stable_lora", "sr, LoRA", ".2f"),
            Column("stable_full", "sr, full", ".2f"),
        ),
        conclusions.alignment.contrasts,
    )


def rates_table(conclusions: Conclusions) -> Table:
    """H5 per configuration."""
    rows = conclusions.rates.configurations
    if len(rows):
        rows = rows.assign(
            series=[series_name(m, s) for m, s in zip(rows["method"], rows["scaling"], strict=True)]
        )
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
            Column("best", "best rate", rate_name),
            Column("low", "from", rate_name),
            Column("high", "to", rate_name),
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
    table["series"] = [
        series_name(m, s) for m, s in zip(table["method"], table["scaling"], strict=True)
    ]
    return Table(
        "layers",
        "Every layer at the best learning rate and checkpoint",
        "Medians over seeds. The bounds enclose sr(ΔW) as measured; σ₁ is the largest singular "
        "value of ΔW.",
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
