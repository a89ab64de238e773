"""Which finished trials are whole: sizes are always compared, digests once per version of a file.

A commit says size, time of the last change and SHA-256 of every file. A file with that size and
time is whole. One with another time (a copied store, an edited file) is read, and what was found
whole is remembered. Trials from before digests were kept are read and judged by their content.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.store.files import dumps, loads, read_json
from rankscope.store.log import Commit, Log
from rankscope.store.storage import DENIED, LocalStorage, Storage, Version
from rankscope.store.trial_dir import DONE, METRICS, RECORDS, SPECTRA, TRIAL, digests, sha256
from rankscope.study.trial import Trial
from rankscope.system import read_file

# name in the trial's folder -> [size, time of the last change, SHA-256]
Files = Mapping[str, Sequence[Any]]

VERIFIED = "cache/verified.json"
REFUSED = os.strerror(errno.EACCES)  # how a fault ends of which nobody knows what is there


def misfit(files: Files, versions: Sequence[Version | None]) -> str | None:
    """The first file that is missing or of another size, without reading any."""
    for (name, (size, *_)), version in zip(files.items(), versions, strict=True):
        if version is None:
            return f"{name} is missing"
        if version == DENIED:
            return f"{name}: {REFUSED}"
        if version.size != size:
            return f"{name}: expected {size} bytes; found {version.size}"
    return None


def denied_in(names: Sequence[str], versions: Sequence[Version | None]) -> str | None:
    """The first of these files that may not be read, without touching any."""
    found = [name for name, seen in zip(names, versions, strict=True) if seen == DENIED]
    return f"{found[0]}: {REFUSED}" if found else None


def is_as_committed(files: Files, versions: Sequence[Version | None]) -> bool:
    """Whether no file has been touched since it was committed, so that there is nothing to read."""
    pairs = zip(files.values(), versions, strict=True)
    return all(
        v is not None and (v.size, v.stamp) == (size, stamp) for (size, stamp, _), v in pairs
    )


def mismatch(folder: Path, files: Files) -> str | None:
    """The first file that does not have its SHA-256."""
    for name, (_, _, digest) in files.items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            return f"{name}: {error.strerror or 'cannot be read'}"
        if found != digest:
            return f"{name}: expected SHA-256 {digest[:12]}; found {found[:12]}"
    return None


def implausible(folder: Path) -> str | None:
    """What is wrong with a trial of which no digests are known."""
    for name in RECORDS:
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            return f"{name} is no file"
    try:
        name = TRIAL
        if Trial(**read_json(folder / TRIAL)["trial"]).id != folder.name:
            return f"{TRIAL} describes another trial"
        name = DONE
        if read_json(folder / DONE)["status"] not in ("done", "diverged"):
            return f"{DONE}: expected a result; found none"
        name = METRICS
        if (folder / METRICS).exists():
            for line in (folder / METRICS).read_text(encoding="utf-8").splitlines():
                json.loads(line)["step"]
        name = SPECTRA
        if "stable_rank" not in pq.ParquetFile(folder / SPECTRA).read().column_names:
            return f"{SPECTRA}: expected stable ranks; found none"
        for name, other in (("best", "last"), ("last", "best")):
            if (folder / other).is_dir() and not (folder / name).is_dir():
                return f"{name} is missing"
    except OSError as error:
        return f"{name}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, pa.ArrowException):
        return f"{name} is damaged"
    return None


def own_record(folder: Path) -> tuple[dict[str, Any], dict[str, list[Any]]] | str:
    """A sealed trial's done.json and its files as a commit lists them, or what is wrong with it."""
    if (fault := implausible(folder)) is not None:
        return fault
    said, found = read_json(folder / DONE), digests(folder)
    if "files" not in said:
        return f"{DONE} says no digests"
    for name, digest in said["files"].items():
        if name not in found or found[name][2] != digest:
            return f"{name} is missing or another file than {DONE} says"
    return said, {
        name: entry for name, entry in found.items() if name == DONE or name in said["files"]
    }


class Verified:
    """The trials whose files have been read and found whole, by a digest of these files'
    versions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it is a cache
            self._known = dict(loads(read_file(path), str(path))["trials"])

    def knows(self, trial: str, kind: str, versions: Sequence[Version | None]) -> bool:
        return self._known.get(f"{kind} {trial}") == versions_digest(versions)

    def add(self, trial: str, kind: str, versions: Sequence[Version | None]) -> None:
        self._known[f"{kind} {trial}"] = versions_digest(versions)
        self._changed = True

    def save(self) -> None:
        if self._changed:
            self._changed = False
            with contextlib.suppress(
                OSError
            ):  # a store that can't be written can be read all the same
                content = dumps({"trials": self._known})
                LocalStorage(self._path.parent).write(self._path.name, content, durable=False)


def versions_digest(versions: Sequence[Version | None]) -> str:
    return hashlib.sha256(repr([v and tuple(v) for v in versions]).encode()).hexdigest()[:16]


def of_kind(files: Files, kind: str) -> Files:
    """``records``, which tables are made of, or ``weights``, the large ones."""
    return {
        name: entry for name, entry in files.items() if (name in RECORDS) == (kind == "records")
    }


@dataclass
class Inspection:
    """The state of every trial in the log or in the folder ``trials``."""

    whole: list[str] = field(default_factory=list)
    # trial -> what is wrong; its commit counts no more
    harmed: dict[str, str] = field(default_factory=dict)
    # folder in trials/ that no commit speaks of -> what is wrong
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> dict[str, str]:
        """The trials that no table shows, and why."""
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
    if (denied := denied_in(RECORDS, seen)) is not None:
        return denied
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
    if (denied := denied_in(names, seen)) is not None:
        raise PermissionError(f"{storage}/{denied}")
    if commit.files is None:
        return None not in seen
    if misfit(commit.files, seen) is not None:
        return False
    if is_as_committed(commit.files, seen) or not isinstance(storage, LocalStorage):
        return True
    return mismatch(storage.root / folder, commit.files) is None
