"""Finished trials as tables.

The tables of a pack's trials are written with its commit into one Parquet file, so that readers
need not open four files a trial: the spectra, and in the metadata what each trial's other files
say. The commit bears its SHA-256. The trials stay the truth: where a pack's table is missing or is
not what was committed, its trials are read themselves, and the table is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rankscope.store.files import dumps, loads, read_json
from rankscope.store.integrity import versions_digest
from rankscope.store.log import Log
from rankscope.store.storage import LocalStorage, Storage
from rankscope.store.trial_dir import RECORDS, SPECTRA, TRIAL, TrialDir
from rankscope.study.trial import setting_of
from rankscope.system import read_file

COMPARISON, COMPARISON_OF = "comparison.parquet", "comparison.json"
# parts that the spectra are read in: all at once they would take more memory than all the rest
PARTS = 16
_RECORDS = b"rankscope.records"
_INDEX = "cache/packs/index.json"


def table_name(claim: int) -> str:
    return f"cache/packs/{claim}.parquet"


def record(folder: TrialDir) -> dict[str, Any]:
    """What a trial's small files say: ``trial``, ``versions``, ``machine``, ``result``,
    ``metrics``."""
    said = read_json(folder.path / TRIAL)
    kept = {key: said[key] for key in ("trial", "versions", "machine") if key in said}
    return kept | {"result": folder.result(), "metrics": folder.metrics()}


def read_spectra(folder: TrialDir) -> pa.Table:
    """A trial's spectra, with its id in the column "trial"."""
    table = pq.ParquetFile(folder.path / SPECTRA).read().replace_schema_metadata(None)
    return table.append_column("trial", pa.repeat(folder.path.name, len(table)))


def pack_table(folders: Sequence[TrialDir]) -> bytes:
    spectra = pa.concat_tables(map(read_spectra, folders), promote_options="default")
    records = {folder.path.name: record(folder) for folder in folders}
    metadata = {_RECORDS: json.dumps(records).encode()}
    buffer = pa.BufferOutputStream()
    pq.write_table(spectra.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue().to_pybytes()


@dataclass(frozen=True)
class PackTable:
    """A pack's table whose size and SHA-256 are those of its commit."""

    data: bytes

    @classmethod
    def checked(cls, data: bytes, committed: Sequence[Any]) -> PackTable | None:
        size, digest = committed
        same = len(data) == size and hashlib.sha256(data).hexdigest() == digest
        return cls(data) if same else None

    def records(self) -> dict[str, dict[str, Any]]:
        """Trial -> ``record``."""
        metadata = pq.read_metadata(pa.BufferReader(self.data)).metadata
        return json.loads(metadata[_RECORDS])

    def spectra(self) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.data)).replace_schema_metadata(None)


class Tables:
    """The tables of these trials. Where a commit made none, or it is damaged, its trials are read
    themselves, and the table is made; it counts while the trials' files are the same."""

    def __init__(self, storage: Storage, log: Log, trials: Sequence[str]) -> None:
        self.storage, self.log = storage, log
        self.packs: dict[int, list[str]] = defaultdict(list)
        for trial in sorted(trials):
            self.packs[log.done[trial].claim].append(trial)
        self._index: dict[str, list[Any]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):  # it is a cache
            known = loads(read_file(storage.root / _INDEX), _INDEX)["tables"].items()
            self._index = {key: said for key, said in known if isinstance(said, list)}

    def records(self) -> dict[str, dict[str, Any]]:
        """Trial -> what its small files say (``record``), in the order of the ids."""
        found: dict[str, dict[str, Any]] = {}
        for claim, table in self._tables(list(self.packs)):
            said = table.records()
            found |= {trial: said[trial] for trial in self.packs[claim]}
        return dict(sorted(found.items()))

    def spectra(self) -> Iterator[pa.Table]:
        """In parts of whole trials, each read when it is asked for."""
        claims = sorted(self.packs)
        size = -(-len(claims) // PARTS) or 1
        for i in range(0, len(claims), size):
            yield pa.concat_tables(
                (
                    rows.filter(pc.is_in(rows["trial"], pa.array(self.packs[claim], pa.string())))
                    for claim, table in self._tables(claims[i : i + size])
                    for rows in [table.spectra()]
                ),
                promote_options="default",
            )

    def damaged(self) -> list[str]:
        """The names of tables that exist and differ from what was written."""
        names = {claim: table_name(claim) for claim in self.packs}
        self.storage.fetch(list(names.values()), again=True)
        there = {  # a folder that may not be read stops nothing
            claim: name for claim, name in names.items() if os.path.exists(self.storage.root / name)
        }
        return [name for claim, name in there.items() if self._kept(claim) is None]

    def _tables(self, claims: Sequence[int]) -> Iterator[tuple[int, PackTable]]:
        self.storage.fetch([table_name(claim) for claim in claims if claim in self.log.tables])
        for claim in claims:
            yield claim, self._kept(claim) or self._made(claim)
        self._save()

    def _kept(self, claim: int) -> PackTable | None:
        with contextlib.suppress(OSError):
            data = read_file(self.storage.root / table_name(claim))
            if claim in self.log.tables and (
                found := PackTable.checked(data, self.log.tables[claim])
            ):
                return found
            written = self._index.get(str(claim), [])
            if len(written) == 3 and written[2] == self._versions(claim):
                return PackTable.checked(data, written[:2])
        return None

    def _made(self, claim: int) -> PackTable:
        trials = self.packs[claim]
        self.storage.fetch([f"trials/{trial}/{name}" for trial in trials for name in RECORDS])
        data = pack_table([TrialDir(self.storage.root / "trials" / trial) for trial in trials])
        self._index[str(claim)] = [
            len(data),
            hashlib.sha256(data).hexdigest(),
            self._versions(claim),
        ]
        self._changed |= _write(self.storage.root / table_name(claim), data)
        return PackTable(data)

    def _versions(self, claim: int) -> str:
        """A digest of the versions of the files that the table is made of."""
        names = [f"trials/{trial}/{name}" for trial in self.packs[claim] for name in RECORDS]
        return versions_digest(LocalStorage(self.storage.root).versions(names))

    def _save(self) -> None:
        if self._changed:
            self._changed = False
            _write(self.storage.root / _INDEX, dumps({"tables": self._index}))


def _write(path: Path, data: bytes) -> bool:
    """-> whether it could be written; a read-only store is still readable."""
    try:
        LocalStorage(path.parent).write(path.name, data, durable=False)
    except OSError:
        return False
    return True


# frames, each with the trial's id in the column "trial"

Record = Mapping[str, Any]  # see `record`
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
# the metric of a constant answer; NaN in older stores
_RESULT_COLUMNS += ["constant"]
# the metric at the best evaluation on the rows that chose nothing; NaN without validation_split
_RESULT_COLUMNS += ["held_out"]
# the metric of a language model before it is trained; NaN of others
_RESULT_COLUMNS += ["untrained"]
# whether it is better when it is greater: it is, where that is not said
_RESULT_COLUMNS += ["greater_is_better"]


def trials_frame(records: Mapping[str, Record]) -> pd.DataFrame:
    """One row per trial."""
    rows = [
        {
            "trial": id,
            **{c: found["trial"][c] for c in _TRIAL_COLUMNS},
            "setting": found["trial"].get("setting") or setting_of(found["trial"]),
            **found["result"],
        }
        for id, found in records.items()
    ]
    columns = ["trial", *_TRIAL_COLUMNS, "setting", *_RESULT_COLUMNS]
    frame = pd.DataFrame(rows, columns=columns)
    integers = dict.fromkeys(("rank", "diverged_at"), "Int64")
    numbers = dict.fromkeys(
        ("best", "last", "learning_rate", "seconds", "constant", "held_out", "untrained"), "float64"
    )
    is_known = frame["greater_is_better"].notna()
    frame["greater_is_better"] = frame["greater_is_better"].where(is_known, True).astype(bool)
    return frame.astype(
        {**integers, **numbers, **dict.fromkeys(("seed", "steps", "best_step"), "int64")}
    )


def metrics_frame(records: Mapping[str, Record]) -> pd.DataFrame:
    """One row per evaluation."""
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


def spectra_frame(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """One row per step, layer and matrix."""
    if not tables:
        return pd.DataFrame(columns=["trial"])
    return pa.concat_tables(tables, promote_options="default").to_pandas()


# the comparison of LoRA with full fine-tuning, which is one table of all trials


def read_comparison(
    storage: Storage, *, trials: Callable[[], str]
) -> tuple[pd.DataFrame, str | None]:
    """-> the comparison (empty if there is none), and why it must be made again, if so.

    ``trials`` gives the hash of the finished trials (``Store.hash``); it is called only if the
    file can be read.
    """
    said: dict[str, Any] | None = None
    try:
        said = loads(storage.read(COMPARISON_OF), COMPARISON_OF)
        data = storage.read(COMPARISON)
        if hashlib.sha256(data).hexdigest() != said["parquet"]:
            return pd.DataFrame(), f"{COMPARISON} is damaged"
        frame = pd.read_parquet(io.BytesIO(data))
    except FileNotFoundError:
        if said is not None or not storage.exists(COMPARISON):
            return pd.DataFrame(), f"{COMPARISON} is missing"
        return _older_comparison(storage)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return pd.DataFrame(), f"{COMPARISON} or {COMPARISON_OF} is damaged"
    return frame, None if said["trials"] == trials() else f"{COMPARISON} is of other trials"


def _older_comparison(storage: Storage) -> tuple[pd.DataFrame, str | None]:
    """The comparison as older versions wrote it, without the trials that it belongs to."""
    try:
        return pd.read_parquet(io.BytesIO(storage.read(COMPARISON))), None
    except (OSError, ValueError, pa.ArrowException):
        return pd.DataFrame(), f"{COMPARISON} is damaged"


def write_comparison(storage: Storage, comparison: pd.DataFrame, *, trials: str) -> None:
    """``trials``: the hash of the finished trials that it was made of."""
    data = comparison.to_parquet(index=False)
    storage.write(COMPARISON, data)
    said = {"parquet": hashlib.sha256(data).hexdigest(), "trials": trials}
    storage.write(COMPARISON_OF, dumps(said))
