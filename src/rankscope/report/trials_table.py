"""The table of all trials, which points of figures link to."""

from __future__ import annotations

import numpy as np

from rankscope.analysis.drift import at_best
from rankscope.analysis.frames import Frames
from rankscope.report.table import RANK, WHERE, Column, Table
from rankscope.report.theme import rate_name, series_names


def trials_table(frames: Frames) -> Table:
    """One row per finished trial, arms included: its configuration, its result, and its stable rank
    at the best evaluation."""
    rows = frames.all_trials
    rows = rows.assign(
        series=series_names(rows),
        budget=rows["budget"].where(rows["budget"].ne(1)),
        diverged_at=rows["diverged_at"].astype(float),
    )
    measured = at_best(frames.all_trials, frames.spectra, "dW")
    rows = rows.merge(
        measured.groupby("trial", as_index=False)["stable_rank"].median(), on="trial", how="left"
    )
    moved = frames.drifts.drop_duplicates(["trial", "step"])
    rows = rows.merge(
        moved[["trial", "step", "log_drift", "rho"]],
        left_on=["trial", "best_step"],
        right_on=["trial", "step"],
        how="left",
    )
    rows["percent"] = 100 * np.expm1(rows["log_drift"].astype(float))
    order = ["model", "task", "method", "scaling", "rank", "learning_rate", "seed"]
    ascending = [name != "method" for name in order]  # LoRA, then full
    arms = [Column("budget", "budget", "g")] if rows["budget"].notna().any() else []
    split = rows["held_out"].notna().any()
    return Table(
        "trials",
        "All trials",
        "Every trial that finished. sr(ΔW), drift and ρ are medians over layers at the best "
        "evaluation.",
        (
            Column("trial", "trial"),
            *WHERE,
            Column("series", "method"),
            RANK,
            Column("learning_rate", "learning rate", rate_name),
            Column("seed", "seed", "d"),
            *arms,
            Column("status", "status"),
            Column("metric", "metric", printed=False),
            Column("best", "best", ".3f"),
            *([Column("held_out", "held out", ".3f")] if split else []),
            Column("best_step", "at step", ".0f"),
            Column("last", "last", ".3f"),
            Column("steps", "steps", ".0f"),
            Column("diverged_at", "diverged at", ".0f", printed=False),
            Column("stable_rank", "sr(ΔW)", ".2f"),
            Column("percent", "drift, %", "+.1f"),
            Column("rho", "ρ", ".2f"),
            Column("seconds", "seconds", ".0f"),
        ),
        rows.sort_values(order, ascending=ascending, kind="stable", ignore_index=True),
        searched=True,
    )
