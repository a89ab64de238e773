"""What finished trials' files say, as tables; each has the trial's id in the column "trial"."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.store.trial_dir import SPECTRA, TrialDir

_TRIAL_COLUMNS = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
_RESULT_COLUMNS = ["status", "metric", "best", "best_step", "last", "steps", "diverged_at", "seconds"]


def trials(folders: Sequence[TrialDir]) -> pd.DataFrame:
    """One row per trial."""
    rows = []
    for folder in folders:
        trial = folder.trial()
        rows.append({"trial": folder.path.name, **{c: trial[c] for c in _TRIAL_COLUMNS}, **folder.result()})
    frame = pd.DataFrame(rows, columns=["trial", *_TRIAL_COLUMNS, *_RESULT_COLUMNS])
    integers = dict.fromkeys(("rank", "diverged_at"), "Int64")
    numbers = dict.fromkeys(("best", "last", "learning_rate", "seconds"), "float64")
    return frame.astype({**integers, **numbers, **dict.fromkeys(("seed", "steps", "best_step"), "int64")})


def metrics(folders: Sequence[TrialDir]) -> pd.DataFrame:
    """One per evaluation."""
    rows = []
    for folder in folders:
        metric = folder.result()["metric"]
        rows += [
            {"trial": folder.path.name, **line, "metric_value": line.get(metric)} for line in folder.metrics()
        ]
    first = ["trial", "step", "epoch", "train_loss", "eval_loss", "metric_value"]
    frame = pd.DataFrame(rows, columns=None if rows else first)
    numbers = [c for c in frame.columns if c not in ("trial", "step")]
    frame = frame.astype(dict.fromkeys(numbers, "float64"))
    return frame[first + [c for c in frame.columns if c not in first]]


def spectra(folders: Sequence[TrialDir]) -> pd.DataFrame:
    """One per step, layer and matrix."""
    tables = []
    for folder in folders:
        table = pq.ParquetFile(folder.path / SPECTRA).read().replace_schema_metadata(None)
        tables.append(table.append_column("trial", pa.repeat(folder.path.name, len(table))))
    if not tables:
        return pd.DataFrame(columns=["trial"])
    return pa.concat_tables(tables, promote_options="default").to_pandas()
