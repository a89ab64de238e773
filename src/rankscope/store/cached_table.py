"""Tables over all finished trials, read trial by trial, and kept in ``cache/`` where there are many.

The trials stay the truth: a kept row counts only while its trial's ``done.json`` is the same file, and the folder may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.store.storage import LocalStorage
from rankscope.store.trial_dir import DONE, TrialDir

WORTH = 100  # trials that are read again in about the time that keeping them takes
_STAMPS = b"rankscope.stamps"


def cached_table(
    cache: Path,
    folders: Sequence[TrialDir],
    read: Callable[[Sequence[TrialDir]], pd.DataFrame],
    *,
    of: int = 1,
) -> pd.DataFrame:
    """The rows of these trials, in their order; each has its id in the column "trial". ``cache`` is a Parquet file,
    one ``of`` so many that hold a part of the trials each."""
    stamps = {folder.path.name: os.stat(f"{folder.path}/{DONE}").st_mtime_ns for folder in folders}
    kept, known = _load(cache)
    usable = {id for id, stamp in known.items() if stamps.get(id) == stamp}
    fresh = [folder for folder in folders if folder.path.name not in usable]
    if not fresh and len(usable) == len(known) and known:
        return kept
    new = read(fresh)
    frame = new
    if usable:
        parts = [kept[kept["trial"].isin(usable)], new]
        frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
        frame = frame.sort_values("trial", kind="stable", ignore_index=True)
    if len(fresh) * of >= WORTH:
        _save(cache, frame, stamps)
    return frame


def _load(cache: Path) -> tuple[pd.DataFrame, dict[str, int]]:
    with contextlib.suppress(OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        table = pq.read_table(cache)
        return table.to_pandas(), json.loads(table.schema.metadata[_STAMPS])
    return pd.DataFrame(), {}


def _save(cache: Path, frame: pd.DataFrame, stamps: dict[str, int]) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), _STAMPS: json.dumps(stamps).encode()}
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    with contextlib.suppress(OSError):  # a store that can't be written can be read all the same
        LocalStorage(cache.parent).write(cache.name, buffer.getvalue().to_pybytes(), durable=False)
