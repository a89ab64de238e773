"""The tables of one pack's trials in one file, written with its commit: so readers need
not open four files a trial.

A Parquet file with the spectra; in its metadata what the other files of each trial say. The
commit bears its SHA-256. The trials stay the truth: where a pack's table is missing or another,
its trials are read themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.store.files import read_json
from rankscope.store.trial_dir import SPECTRA, TRIAL, TrialDir

_RECORDS = b"rankscope.records"


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
    """One that is what its commit says."""

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
