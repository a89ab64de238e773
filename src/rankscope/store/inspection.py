"""Which finished trials are whole, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rankscope.store.integrity import (
    Verified,
    implausible,
    is_as_committed,
    misfit,
    mismatch,
    of_kind,
)
from rankscope.store.log import Commit, Log
from rankscope.store.storage import LocalStorage, Storage, Version
from rankscope.store.trial_dir import DONE, RECORDS

VERIFIED = "cache/verified.json"


@dataclass
class Inspection:
    """Of all trials that the log or the folder ``trials`` knows."""

    whole: list[str] = field(default_factory=list)
    harmed: dict[str, str] = field(
        default_factory=dict
    )  # trial -> what is wrong; its commit counts no more
    unknown: dict[str, str] = field(
        default_factory=dict
    )  # folder in trials/ that no commit speaks of

    @property
    def left_out(self) -> dict[str, str]:
        """What no table shows, and why."""
        return {**self.harmed, **self.unknown}


def inspect(storage: Storage, log: Log, *, kinds: Sequence[str], again: bool = False) -> Inspection:
    """Compares sizes with what commits say, and digests of the ``kinds`` of files
    ("records", "weights") that have another time than at their commit and were not found
    whole before (``again``: of all)."""
    there = storage.names("trials")
    log.refresh()  # afterwards: who is there is committed
    found = Inspection()
    verified = Verified(storage.root / VERIFIED)
    committed = sorted(log.done.items())
    versions = iter(
        storage.versions(
            [f"trials/{id}/{name}" for id, c in committed for name in c.files or RECORDS]
        )
    )
    for id, commit in committed:
        seen = [next(versions) for _ in commit.files or RECORDS]
        fault = _fault(storage, id, commit, seen, kinds, verified, again=again)
        if fault is None:
            found.whole.append(id)
        elif id in there or not storage.exists(f"work/{commit.claim}/trials/{id}/{DONE}"):
            found.harmed[id] = fault if id in there else "its folder is missing"
    for id in there:
        if id not in log.done:
            _unknown(storage, log, id, found)
    found.whole.sort()
    verified.save()
    return found


def _fault(
    storage: Storage, id: str, commit: Commit, seen: list[Version | None], kinds: Sequence[str],
    verified: Verified, *, again: bool
) -> str | None:  # fmt: skip
    if commit.files is None:
        return _fault_without_digests(storage, id, seen, verified, again=again)
    if (fault := misfit(commit.files, seen)) is not None:
        return fault
    if is_as_committed(commit.files, seen) and not again:
        return None
    versions = dict(zip(commit.files, seen, strict=True))
    for kind in kinds:
        files = of_kind(commit.files, kind)
        own = [versions[name] for name in files]
        if verified.knows(id, kind, own) and not again:
            continue
        storage.fetch([f"trials/{id}/{name}" for name in files], again=True)
        if (fault := mismatch(storage.root / "trials" / id, files)) is not None:
            return fault
        verified.add(id, kind, own)
    return None


def _fault_without_digests(
    storage: Storage, id: str, seen: list[Version | None], verified: Verified, *, again: bool
) -> str | None:
    if verified.knows(id, "records", seen) and not again:
        return None
    storage.fetch_below(f"trials/{id}")
    if (fault := implausible(storage.root / "trials" / id)) is None:
        verified.add(id, "records", seen)
    return fault


def _unknown(storage: Storage, log: Log, id: str, found: Inspection) -> None:
    """A folder that no commit speaks of: a result in stores of older versions, whose logs say
    less."""
    fault: Any = "no commit in the log speaks of it"
    if not log.store_id and log.holder(id) is None:
        storage.fetch_below(f"trials/{id}")
        fault = implausible(storage.root / "trials" / id)
    if fault is None:
        log.done[id] = Commit(0, None, None)
        found.whole.append(id)
    else:
        found.unknown[id] = fault


def is_whole(storage: Storage, folder: str, commit: Commit) -> bool:
    """Whether that folder holds what was committed."""
    names = [f"{folder}/{name}" for name in commit.files or (DONE,)]
    seen = storage.versions(names)
    if commit.files is None:
        return None not in seen
    if misfit(commit.files, seen) is not None:
        return False
    if is_as_committed(commit.files, seen) or not isinstance(storage, LocalStorage):
        return True
    return mismatch(storage.root / folder, commit.files) is None
