"""Edited trials in a store: ``interventions/<settings>/<trial>.parquet``, and beside each a sealed
``.json`` with its SHA-256, the digests of the weights that were edited, and the rows' labels.

``<settings>`` is a digest of what the numbers depend on beside the edits. The log says of both
files what a commit says of a trial's. What is missing or another file, or of weights that were
trained again since, counts as absent and is made again. What this user may not read, or a newer
rankscope wrote, is left out of all tables and left as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rankscope.store import recovery
from rankscope.store.files import DamagedFile, dumps, loads
from rankscope.store.integrity import Files, is_as_committed, misfit, of_kind
from rankscope.store.log import Edits
from rankscope.store.storage import LocalStorage
from rankscope.store.store import Store
from rankscope.system import NotAFile, is_locked, lock, private_dir

FOLDER = "interventions"


def write(
    store: Store, key: str, trial: str, table: pd.DataFrame, about: Mapping[str, Any]
) -> None:
    """The table first; it counts once its sealed description stands beside it, and is missed once
    the log says so."""
    data = io.BytesIO()
    table.to_parquet(data, index=False, compression="zstd")
    weights = weights_of(store, trial)
    said = {**about, "parquet": _sha256(data.getvalue()), "weights": weights}
    contents = {f"{trial}.parquet": data.getvalue(), f"{trial}.json": dumps(said)}
    for name, content in contents.items():
        store.storage.write(f"{FOLDER}/{key}/{name}", content)
    files = {
        name: [len(content), _stamp(store, f"{FOLDER}/{key}/{name}"), _sha256(content)]
        for name, content in contents.items()
    }
    store.log.edited(key, trial, Edits(weights, files))


def read(store: Store, key: str, trial: str) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """A trial's table and its description; None where it is absent, damaged or stale.
    ``PermissionError`` or ``ValueError`` where it may be whole but cannot be read here."""
    try:
        about, data, seal = _read(store, f"{FOLDER}/{key}/{trial}")
    except (FileNotFoundError, NotADirectoryError, NotAFile, DamagedFile):
        return None
    if _fault(about, data) is not None or about["weights"] != weights_of(store, trial):
        return None
    if not _is_recorded(store, key, trial, seal):
        return None
    return pd.read_parquet(io.BytesIO(data)), about


def _read(store: Store, name: str) -> tuple[dict[str, Any], bytes, str]:
    """Description, table, and the description's own SHA-256."""
    said = store.storage.read(f"{name}.json")
    about = loads(said, f"{store}/{name}.json")
    return about, store.storage.read(f"{name}.parquet"), _sha256(said)


def _is_recorded(store: Store, key: str, trial: str, seal: str) -> bool:
    """Whether the log says this of the description, or nothing of these edits."""
    name = f"{trial}.json"
    known = _recorded(store, key, trial)
    if known is not None and known[name][2] != seal:
        store.log.refresh()  # another process may have made them again
        known = _recorded(store, key, trial)
    return known is None or known[name][2] == seal


def _recorded(store: Store, key: str, trial: str) -> Files | None:
    """What the log says of the files of these edits; None where the trial was trained again since,
    to other weights."""
    edits = store.log.edits.get((key, trial))
    return edits.files if edits is not None and edits.weights == weights_of(store, trial) else None


def _stamp(store: Store, name: str) -> Any:
    """Behind a URL it would take a request: files are read there whenever they are checked."""
    (seen,) = store.storage.versions([name]) if isinstance(store.storage, LocalStorage) else (None,)
    return seen and seen.stamp


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _fault(about: Mapping[str, Any], data: bytes) -> str | None:
    if not {"parquet", "weights", "labels"} <= about.keys():
        return "its description is another program's"
    found = _sha256(data)
    if found != about["parquet"]:
        return f"expected SHA-256 {str(about['parquet'])[:12]}; found {found[:12]}"
    return None


class Fault(NamedTuple):
    """A folder, or a trial's two files, that can't be used; ``name`` is without their suffixes."""

    name: str
    why: str
    is_closed: bool  # to this user or this version: it may be whole


def faults(store: Store, *, glance: bool = False) -> list[Fault]:
    """What counts as absent, or is left out, though its trial was edited. ``glance``: by the sizes
    that the log says, and the content only of local files that were touched since."""
    store.log.refresh()
    found = closed(store)
    shut = {fault.name for fault in found}
    logged = {at: files for at in store.log.edits if (files := _recorded(store, *at)) is not None}
    names = [f"{FOLDER}/{key}/{name}" for (key, _), files in logged.items() for name in files]
    versions = dict(zip(names, store.storage.versions(names), strict=True))
    for key, trial in sorted({*_described(store), *logged}):
        if shut & {FOLDER, f"{FOLDER}/{key}"}:
            continue
        files = logged.get((key, trial), {})
        seen = [versions[f"{FOLDER}/{key}/{name}"] for name in files]
        why = misfit(files, seen)
        far = not isinstance(store.storage, LocalStorage)
        if why is None and (is_as_committed(files, seen) if files and not far else glance):
            continue
        if (fault := _fault_of(store, key, trial, why or "its table is missing")) is not None:
            found.append(fault)
    return found


def _fault_of(store: Store, key: str, trial: str, missing: str) -> Fault | None:
    name = f"{FOLDER}/{key}/{trial}"
    try:
        about, data, seal = _read(store, name)
        why = _fault(about, data)
        if why is None and not _is_recorded(store, key, trial, seal):
            why = "its description is another than the log says"
    except (FileNotFoundError, NotADirectoryError):
        why = missing
    except (NotAFile, DamagedFile) as error:
        why = str(error)
    except (PermissionError, ValueError) as error:
        return Fault(name, getattr(error, "strerror", None) or str(error), True)
    return None if why is None else Fault(name, why, False)


def set_aside(store: Store, fault: Fault) -> bool:
    """Moves its files to ``harmed/``; it is not missed any more. -> whether there were any"""
    _, key, trial = fault.name.split("/")
    files = [f"{fault.name}.{kind}" for kind in ("json", "parquet")]
    moved = [recovery.set_aside(store.storage, store.log, name) for name in files]
    if (key, trial) in store.log.edits:
        store.log.edited(key, trial, None)
    return any(moved)


def left_out(store: Store | str, found: Sequence[Fault]) -> str:
    """One line about some of these."""
    name, why, is_closed = found[0]
    remedy = "nothing was changed" if is_closed else f"rankscope check {store} --repair"
    return f"edited trials left out, {len(found)}; the first: {store}/{name}: {why}. {remedy}"


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


def trials(store: Store, without: Sequence[Fault] = ()) -> set[str]:
    """Trials that have a description under some settings, ``without`` those at fault. By their
    names alone, unread: whether each counts is seen when it is read."""
    at_fault = {fault.name for fault in without}
    return {t for key, t in _described(store) if f"{FOLDER}/{key}/{t}" not in at_fault}


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
