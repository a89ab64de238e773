"""Edited trials in a store: ``interventions/<settings>/<trial>.parquet``, and beside each a sealed
``.json`` with its SHA-256, the digests of the weights that were edited, and the rows' labels.

``<settings>`` is a digest of what the numbers depend on beside the edits. A result whose digest is
wrong, or whose trial was trained again since, counts as absent and is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    """A trial's table and its description; None where it is absent, damaged or stale."""
    name = f"{FOLDER}/{key}/{trial}"
    try:
        about = loads(store.storage.read(f"{name}.json"), f"{name}.json")
        data = store.storage.read(f"{name}.parquet")
    except (FileNotFoundError, NotADirectoryError, NotAFile, DamagedFile):
        return None
    if _fault(about, data) is not None or about["weights"] != weights_of(store, trial):
        return None
    return pd.read_parquet(io.BytesIO(data)), about


def _fault(about: Mapping[str, Any], data: bytes) -> str | None:
    if not {"parquet", "weights", "labels"} <= about.keys():
        return "its description is another program's"
    found = hashlib.sha256(data).hexdigest()
    if found != about["parquet"]:
        return f"expected SHA-256 {str(about['parquet'])[:12]}; found {found[:12]}"
    return None


def damaged(store: Store) -> dict[str, str]:
    """Names of the files, without their endings, that are not what was written -> why. They count
    as absent."""
    found: dict[str, str] = {}
    for key in keys(store):
        names = store.storage.names(f"{FOLDER}/{key}")
        for trial in sorted({name.rpartition(".")[0] for name in names}):
            name = f"{FOLDER}/{key}/{trial}"
            if not names or f"{trial}.json" not in names:  # its table alone: it was never finished
                continue
            try:
                about = loads(store.storage.read(f"{name}.json"), f"{name}.json")
                fault = _fault(about, store.storage.read(f"{name}.parquet"))
            except FileNotFoundError:
                fault = "its table is missing"
            except (NotAFile, DamagedFile) as error:
                fault = str(error)
            if fault is not None:
                found[name] = fault
    return found


def keys(store: Store) -> list[str]:
    """The settings under which anything was kept."""
    return store.storage.names(FOLDER)


def trials(store: Store) -> set[str]:
    """Trials that have a description under some settings. By their names alone, unread: whether
    each counts is seen when it is read."""
    return {
        name.removesuffix(".json")
        for key in keys(store)
        for name in store.storage.names(f"{FOLDER}/{key}")
        if name.endswith(".json")
    }


def everything(store: Store) -> Iterator[tuple[str, str, pd.DataFrame, dict[str, Any]]]:
    """All that counts: settings, trial, table, description."""
    done = set(store.done_ids())
    for key in keys(store):
        for name in store.storage.names(f"{FOLDER}/{key}"):
            trial = name.removesuffix(".json")
            if trial == name or trial not in done:
                continue
            found = read(store, key, trial)
            if found is not None:
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
    """Whether this process may edit that trial now: nobody else on this machine does. The kernel
    drops the lock with its holder. Processes on other machines may do the same work twice; whoever
    writes last leaves the same numbers."""
    digest = hashlib.sha256(f"{Path(str(store)).absolute()}\n{key}\n{trial}".encode()).hexdigest()
    path = private_dir() / f"intervene-{digest[:32]}"
    if is_locked(path):
        yield False
        return
    with path.open("w") as file:
        lock(file)
        yield True
        path.unlink(missing_ok=True)
