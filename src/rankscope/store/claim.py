"""What a worker writes under its claim, in ``work/<claim>/``, until it is committed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.store.log import Log
from rankscope.store.recovery import place
from rankscope.store.storage import LocalStorage, Storage
from rankscope.store.tables import pack_table, table_name
from rankscope.store.trial_dir import TrialDir


@dataclass(frozen=True)
class Claim:
    """The files of one claim, by its number in the log."""

    storage: Storage
    log: Log
    number: int

    @contextlib.contextmanager
    def dir(self, trials: Sequence[str]) -> Iterator[Path]:
        """The local folder of the claim: ``trials/`` to be filled, and ``scratch/`` as the previous
        claim on these trials left it."""
        path = self.storage.claim_dir(f"work/{self.number}")
        # several, since a successor may have died before it took over
        for before in self.log.ended.get(frozenset(trials), []):
            self.storage.take_over(f"work/{before}/scratch", f"work/{self.number}/scratch")
            self.storage.remove(f"work/{before}")
        (path / "scratch").mkdir(exist_ok=True)
        yield path

    def flush(self) -> None:
        """Makes the claim's trials durable."""
        self.storage.flush(f"work/{self.number}/trials")

    def flush_scratch(self) -> None:
        """Makes the scratch folder available to a successor."""
        if not isinstance(self.storage, LocalStorage):  # a local one is in the store already
            self.storage.flush(f"work/{self.number}/scratch")

    def write_table(self, folders: Sequence[TrialDir]) -> list[Any]:
        """Caches the tables of the claim's trials in one file. -> its size and SHA-256, for the
        commit"""
        data = pack_table(folders)
        with contextlib.suppress(OSError):  # the trials hold the same
            self.storage.write(table_name(self.number), data, durable=False)
        return [len(data), hashlib.sha256(data).hexdigest()]

    def place(self) -> None:
        """Moves the trials of the claim, once committed, to ``trials/``."""
        place(self.storage, self.log, self.number)

    def drop(self) -> None:
        """Removes the claim's folder."""
        self.storage.remove(f"work/{self.number}")
