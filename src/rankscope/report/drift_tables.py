"""The tables of H2 to H4: the drift of W + dW beside performance and over training, and LoRA beside
full fine-tuning."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankscope.analysis.alignment import MEASURES
from rankscope.analysis.conclusions import Conclusions
from rankscope.report.table import RANK, WHERE, Column, Table, interval_column
from rankscope.report.theme import rate_name


def thresholds_table(conclusions: Conclusions) -> Table:
    """H2 per model and task."""
    names = ("half_ratio", "first_ratio", "plateau_ratio", "kept")
    shares = [name + end for name in names for end in ("", "_low", "_high")]
    rows = conclusions.thresholds_frame()
    for name in (*shares, "premise", "first_share") if len(rows) else ():
        rows[name] = 100 * rows[name].astype(float)
    return Table(
        "thresholds",
        "The drift at which the gain is lost",
        "In per cent of sr(W): where half of LoRA's gain over a constant answer is lost, and "
        "where the fitted line leaves its plateau, with 95 % intervals over resampled trials (0: "
        "open). Kept: what the plateau has of the gain. Loss: the mean of the models near sr(W) "
        "less that of the deepest quarter of the drifted checkpoints. Premise: the gain of models "
        "near sr(W) in per cent of the best gain.",
        (
            *WHERE,
            Column("answer", "answer"),
            Column("reason", "because"),
            Column("direction", "sr(W + ΔW)", printed=False),
            interval_column("half_ratio", "half lost at, %", ".0f"),
            interval_column("stable_rank", "s*", ".1f"),
            Column("base", "sr(W)", ".1f"),
            interval_column("plateau_ratio", "plateau ends at, %", ".0f"),
            interval_column("kept", "kept on it, %", ".0f"),
            Column("first_share", "small share, %", ".0f", printed=False),
            Column("first_ratio", "small share lost at, %", ".0f", printed=False),
            interval_column("loss", "loss", ".3f"),
            Column("gain", "gain near sr(W)", ".3f"),
            Column("premise", "premise, %", ".0f"),
            Column("constant", "constant answer, or before training", ".3f", printed=False),
            Column("source", "known from", printed=False),
            Column("trials", "trials", ".0f"),
            Column("checkpoints", "checkpoints", ".0f", printed=False),
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
            Column("loss", "loss", "+.3f", ends=("low", "high")),
            Column("p", "p", ".2g"),
        ),
        rows,
    )


def slopes_table(conclusions: Conclusions) -> Table:
    """H3 per model and task."""
    return Table(
        "slopes",
        "Validation against drift inside trials",
        "Change of the metric and of the evaluation loss per e-fold of drift, before and "
        "past the knot at half of sr(W); "
        "one intercept per trial, intervals clustered by trial. Correlation: of the drift's "
        "size with the step.",
        (
            *WHERE,
            Column("growing", "correlation", "+.2f"),
            Column("trials", "trials", ".0f"),
            interval_column("metric_before", "metric, before", "+.3f"),
            interval_column("metric_after", "metric, past", "+.3f"),
            interval_column("loss_before", "loss, before", "+.3f"),
            interval_column("loss_after", "loss, past", "+.3f"),
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
        "conclusions; the CSV has the angles of the subspaces, too.",
        (
            *WHERE,
            Column("scaling", "scale"),
            RANK,
            Column("pairs", "pairs of"),
            *(
                Column(key, words, ".3f", printed=not ("angle" in key or key == "captured_energy"))
                for key, words in MEASURES.items()
            ),
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
            Column("contrast", "difference", "+.3f", ends=("low", "high")),
            Column("seeds", "seeds", ".0f"),
            Column("same_seed", "LoRA and full, one seed", ".3f"),
            Column("norm_ratio", "norm ratio", ".2f"),
            Column("stable_lora", "sr, LoRA", ".2f"),
            Column("stable_full", "sr, full", ".2f"),
        ),
        conclusions.alignment.contrasts,
    )


def halfway_table(conclusions: Conclusions) -> Table:
    """H4: losses halfway between two trained models and their features; no row where no pair was
    evaluated."""
    rows = conclusions.alignment.contrasts
    kinds = [
        interval_column(f"{name}_{key}", f"{words}, {of}", form)
        for name, words in (("barrier", "barrier"), ("cka", "CKA"))
        for key, of, form in (
            ("lora_full", "LoRA and full", ".3f"),
            ("full_full", "two full", ".3f"),
            ("lora_lora", "two LoRA", ".3f"),
            ("contrast", "difference", "+.3f"),
        )
    ]
    return Table(
        "halfway",
        "Loss barriers and similarity of features",
        "Means over pairs of different seeds, and the difference of LoRA and full from two full "
        "fine-tunes, with 95 % intervals over seeds: the loss halfway between both less the mean "
        "of theirs, and the linear CKA of their pooled features.",
        (*WHERE, Column("scaling", "scale"), RANK, *kinds),
        rows.dropna(subset=["barrier_lora_full"]) if len(rows) else rows,
    )
