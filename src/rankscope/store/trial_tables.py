"""Reads finished trials into DataFrames; each has the trial's id in the column "trial"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

Record = Mapping[str, Any]  # pack_table.record
_TRIAL_COLUMNS = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
_RESULT_COLUMNS = [
    "status",
    "metric",
    "best",
    "best_step",
    "last",
    "steps",
    "diverged_at",
    "seconds",
]
_RESULT_COLUMNS += [
    "constant"
]  # the metric of a constant answer; NaN in stores from before 2026-11-26


def trials(records: Mapping[str, Record]) -> pd.DataFrame:
    """One row per trial."""
    rows = [
        {"trial": id, **{c: found["trial"][c] for c in _TRIAL_COLUMNS}, **found["result"]}
        for id, found in records.items()
    ]
    frame = pd.DataFrame(rows, columns=["trial", *_TRIAL_COLUMNS, *_RESULT_COLUMNS])
    integers = dict.fromkeys(("rank", "diverged_at"), "Int64")
    numbers = dict.fromkeys(("best", "last", "learning_rate", "seconds", "constant"), "float64")
    return frame.astype(
        {**integers, **numbers, **dict.fromkeys(("seed", "steps", "best_step"), "int64")}
    )


def metrics(records: Mapping[str, Record]) -> pd.DataFrame:
    """One per evaluation."""
    rows = []
    for id, found in records.items():
        metric = found["result"]["metric"]
        rows += [
            {"trial": id, **line, "metric_value": line.get(metric)} for line in found["metrics"]
        ]
    first = ["trial", "step", "epoch", "train_loss", "eval_loss", "metric_value"]
    frame = pd.DataFrame(rows, columns=None if rows else first)
    numbers = [c for c in frame.columns if c not in ("trial", "step")]
    frame = frame.astype(dict.fromkeys(numbers, "float64"))
    return frame[first + [c for c in frame.columns if c not in first]]


def spectra(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """One per step, layer and matrix."""
    if not tables:
        return pd.DataFrame(columns=["trial"])
    return pa.concat_tables(tables, promote_options="default").to_pandas()
