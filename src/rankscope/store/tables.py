"""All finished trials as tables, read pack by pack."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rankscope.store.files import DamagedFile, dumps, loads
from rankscope.store.integrity import versions_digest
from rankscope.store.log import Log
from rankscope.store.pack_table import PackTable, pack_table, table_name
from rankscope.store.storage import LocalStorage, Storage
from rankscope.store.trial_dir import RECORDS, TrialDir

# that the spectra are read in: all at once they would take more memory than all else together
PARTS = 16
_INDEX = "cache/packs/index.json"


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
        with contextlib.suppress(OSError, DamagedFile, KeyError):
            self._index = dict(loads((storage.root / _INDEX).read_bytes(), _INDEX)["tables"])

    def records(self) -> dict[str, dict[str, Any]]:
        """Trial -> what its small files say (``pack_table.record``), in the order of the ids."""
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
        """The names of those that are there, and not what was written."""
        names = {claim: table_name(claim) for claim in self.packs}
        self.storage.fetch(list(names.values()), again=True)
        there = {
            claim: name for claim, name in names.items() if (self.storage.root / name).exists()
        }
        return [name for claim, name in there.items() if self._kept(claim) is None]

    def _tables(self, claims: Sequence[int]) -> Iterator[tuple[int, PackTable]]:
        self.storage.fetch([table_name(claim) for claim in claims if claim in self.log.tables])
        for claim in claims:
            yield claim, self._kept(claim) or self._made(claim)
        self._save()

    def _kept(self, claim: int) -> PackTable | None:
        with contextlib.suppress(OSError):
            data = (self.storage.root / table_name(claim)).read_bytes()
            if claim in self.log.tables and (
                found := PackTable.checked(data, self.log.tables[claim])
            ):
                return found
            *written, versions = self._index.get(str(claim), [0, "", ""])
            if versions == self._versions(claim):
                return PackTable.checked(data, written)
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
        """Of the files that the table is made of, as they lie here."""
        names = [f"trials/{trial}/{name}" for trial in self.packs[claim] for name in RECORDS]
        return versions_digest(LocalStorage(self.storage.root).versions(names))

    def _save(self) -> None:
        if self._changed:
            self._changed = False
            _write(self.storage.root / _INDEX, dumps({"tables": self._index}))


def _write(path: Path, data: bytes) -> bool:
    """Whether it could be kept: a store that can't be written can be read all the same."""
    try:
        LocalStorage(path.parent).write(path.name, data, durable=False)
    except OSError:
        return False
    return True
