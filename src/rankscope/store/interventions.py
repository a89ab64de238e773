"""Edited trials in a store: ``interventions/<settings>/<trial>.parquet``, and beside each a sealed
``.json`` with its SHA-256, the digests of the weights that were edited, and the rows' labels.

``<settings>`` is a digest of what the numbers depend on beside the edits. A result whose digest is
wrong, or whose trial was trained again since, counts as absent and is made again. One that this
user may not read, or that a newer rankscope wrote, is left out of all tables and left as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rankscope.store.files import DamagedFile, dumps, loads
from rankscope.store.integrity import of_kind
from rankscope.store.store import Store
from rankscope.system import NotAFile, is_locked, lock, private_dir

FOLDER = "interventions"


def write(
    store: Store, key: str, trial: str, table: pd.DataFrame, about: Mapping[str, Any]
) -> None:
    """The table first; it counts once its sealed description stands beside it."""
    data = io.BytesIO()
    table.to_parquet(data, index=False, compression="zstd")
    said = {**about, "parquet": hashlib.sha256(data.getvalue()).hexdigest()}
    said["weights"] = weights_of(store, trial)
    store.storage.write(f"{FOLDER}/{key}/{trial}.parquet", data.getvalue())
    store.storage.write(f"{FOLDER}/{key}/{trial}.json", dumps(said))


def read(store: Store, key: str, trial: str) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """A trial's table and its description; None where it is absent, damaged or stale.
    ``PermissionError`` or ``ValueError`` where it may be whole but cannot be read here."""
    try:
        about, data = _read(store, f"{FOLDER}/{key}/{trial}")
    except (FileNotFoundError, NotADirectoryError, NotAFile, DamagedFile):
        return None
    if _fault(about, data) is not None or about["weights"] != weights_of(store, trial):
        return None
    return pd.read_parquet(io.BytesIO(data)), about


def _read(store: Store, name: str) -> tuple[dict[str, Any], bytes]:
    about = loads(store.storage.read(f"{name}.json"), f"{store}/{name}.json")
    return about, store.storage.read(f"{name}.parquet")


def _fault(about: Mapping[str, Any], data: bytes) -> str | None:
    if not {"parquet", "weights", "labels"} <= about.keys():
        return "its description is another program's"
    found = hashlib.sha256(data).hexdigest()
    if found != about["parquet"]:
        return f"expected SHA-256 {str(about['parquet'])[:12]}; found {found[:12]}"
    return None


class Fault(NamedTuple):
    """A folder, or a trial's two files, that can't be used; ``name`` is without their suffixes."""

    name: str
    why: str
    is_closed: bool  # to this user or this version: it may be whole


def faults(store: Store) -> list[Fault]:
    """What counts as absent, or is left out, though its trial was edited."""
    found = closed(store)
    for key, trial in _described(store):
        if (fault := _fault_of(store, f"{FOLDER}/{key}/{trial}")) is not None:
            found.append(fault)
    return found


def _fault_of(store: Store, name: str) -> Fault | None:
    try:
        why = _fault(*_read(store, name))
    except FileNotFoundError:
        why = "its table is missing"
    except (NotAFile, DamagedFile) as error:
        why = str(error)
    except (PermissionError, ValueError) as error:
        return Fault(name, getattr(error, "strerror", None) or str(error), True)
    return None if why is None else Fault(name, why, False)


def closed(store: Store) -> list[Fault]:
    """The folders that this user may not list."""
    found = []
    for folder in (FOLDER, *(f"{FOLDER}/{key}" for key in keys(store))):
        try:
            store.storage.names(folder)
        except PermissionError as error:
            found.append(Fault(folder, error.strerror or str(error), True))
    return found


def keys(store: Store) -> list[str]:
    """The settings under which anything was kept."""
    return _names(store, FOLDER)


def trials(store: Store) -> set[str]:
    """Trials that have a description under some settings. By their names alone, unread: whether
    each counts is seen when it is read."""
    return {trial for _, trial in _described(store)}


def _described(store: Store) -> Iterator[tuple[str, str]]:
    """Settings and trial of each description; a table alone was never finished."""
    for key in keys(store):
        for name in _names(store, f"{FOLDER}/{key}"):
            if name.endswith(".json"):
                yield key, name.removesuffix(".json")


def _names(store: Store, folder: str) -> list[str]:
    """The names in it; none if this user may not list it, see ``closed``."""
    with contextlib.suppress(PermissionError):
        return store.storage.names(folder)
    return []


def everything(store: Store) -> Iterator[tuple[str, str, pd.DataFrame, dict[str, Any]]]:
    """All that counts: settings, trial, table, description."""
    done = set(store.done_ids())
    for key, trial in _described(store):
        with contextlib.suppress(PermissionError, ValueError):  # see ``faults``
            if trial in done and (found := read(store, key, trial)) is not None:
                yield key, trial, *found


def table(store: Store) -> pd.DataFrame:
    """All edited trials under the settings that most of them share, each line with its ``trial``
    and the rows' ``labels``; empty where no trial was edited."""
    found: dict[str, list[pd.DataFrame]] = {}
    for key, trial, lines, about in everything(store):
        labels = [about["labels"]] * len(lines)
        found.setdefault(key, []).append(lines.assign(trial=trial, labels=labels))
    if not found:
        return pd.DataFrame()
    return pd.concat(max(found.values(), key=len), ignore_index=True)


def weights_of(store: Store, trial: str) -> dict[str, str]:
    """SHA-256 of the trial's files of weights, as its commit says; empty for trials of older
    versions, which kept none."""
    if trial not in store.log.done:
        store.log.refresh()
    commit = store.log.done.get(trial)
    files = of_kind(commit.files, "weights") if commit is not None and commit.files else {}
    return {name: digest for name, (_, _, digest) in sorted(files.items())}


@contextlib.contextmanager
def claimed(store: Store, key: str, trial: str) -> Iterator[bool]:
    """Whether this process may edit that trial now: no other process on this machine does. The
    kernel releases the lock when its holder dies. Processes on other machines may do the same work
    twice; the last one writes the same numbers."""
    digest = hashlib.sha256(f"{Path(str(store)).absolute()}\n{key}\n{trial}".encode()).hexdigest()
    path = private_dir() / f"intervene-{digest[:32]}"
    if is_locked(path):
        yield False
        return
    with path.open("w") as file:
        lock(file)
        yield True
        path.unlink(missing_ok=True)
