"""The table of edits: what each family did to good and to collapsed trials (H6)."""

from __future__ import annotations

import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.report.table import WHERE, Column, Table


def interventions_table(conclusions: Conclusions) -> Table:
    """One row per task, group of trials, head, family and level; no row where nothing was
    edited."""
    rows = []
    for verdict in conclusions.verdicts:
        if verdict.hypothesis != "H6":
            continue
        for one in verdict.numbers["interventions"]:
            where = {"model": one["model"], "task": one["task"]}
            for group in ("good", "collapsed"):
                for head in ("own", "refitted"):
                    found = one.get(f"changes_{group}_{head}", [])
                    rows += [{**where, "group": group, "head": head, **line} for line in found]
    return Table(
        "interventions",
        "Edited trials",
        "Mean change of the metric against each trial's own weights with the same head, on the "
        "same rows, with 95 % intervals for new seeds and new rows; medians of sr(W + ΔW) / sr(W) "
        "and of σ₁(ΔW) / σ₁(W) under the edit.",
        (
            *WHERE,
            Column("group", "trials that are"),
            Column("head", "head"),
            Column("family", "edit"),
            Column("level", "level", ".3g"),
            Column("trials", "trials", ".0f"),
            Column("ratio", "sr after / before", ".3f"),
            Column("rho", "σ₁(ΔW) / σ₁(W)", ".2f"),
            Column("metric", "metric", ".3f"),
            Column("change", "change", "+.3f"),
            Column("change_low", "from", "+.3f"),
            Column("change_high", "to", "+.3f"),
        ),
        pd.DataFrame(rows),
    )
