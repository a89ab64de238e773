"""Verifies every file of a store, and rebuilds what can be rebuilt."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankscope.console import message, visible
from rankscope.store import interventions
from rankscope.store.files import DamagedFile, dumps
from rankscope.store.header import NAME, restore_header
from rankscope.store.integrity import REFUSED, inspect
from rankscope.store.log_files import (
    SNAPSHOT,
    entry_name,
    last_entry,
    read_entries,
    read_snapshot,
)
from rankscope.store.recovery import clear_folders, not_folders, recover, set_aside
from rankscope.store.store import Store


@dataclass
class Checked:
    """What was found, one line each, and what was repaired."""

    store: str
    whole: int = 0  # trials
    faults: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # that only another user or version can read
    missing: int = 0  # trials that are to be trained, or collected, again
    refill: str = ""  # what to type for those
    repaired: bool = False

    @property
    def is_whole(self) -> bool:
        return not self.missing and not self.left and (self.repaired or not self.faults)

    def text(self) -> str:
        lines = [
            *(f"found: {line}" for line in self.faults),
            *(f"done: {line}" for line in self.done),
            *(f"left: {line}" for line in self.left),
        ]
        lines.append(f"{self.whole} trials are whole, every file as it was committed")
        if self.faults and not self.repaired:
            lines.append(f"repair it with: rankscope check {self.store} --repair")
        elif self.missing:
            lines.append(f"{self.missing} trials are missing: {self.refill}")
        return "\n".join(map(visible, lines))


def check(
    place: str | Path, *, repair: bool = False, base_of: Callable[[str], str] | None = None
) -> Checked:
    """Reads every file of a store. ``repair``: sets damaged trials aside, records whole but
    unrecorded ones, rebuilds store.json, log, tables and comparison.
    ``base_of``: see ``compare``.

    ``FileNotFoundError`` if there is no store; ``ValueError`` if a newer rankscope wrote it.
    """
    store = Store(place)
    found = Checked(str(store), repaired=repair, refill=store.refill)
    _folders(store, found, repair=repair)
    _header(store, found, repair=repair)
    _log(store, found, repair=repair)
    store = Store(place)
    _trials(store, found, repair=repair)
    _tables(store, found, repair=repair)
    _comparison(store, found, repair=repair, base_of=base_of)
    _interventions(store, found, repair=repair)
    return found


def _header(store: Store, found: Checked, *, repair: bool) -> None:
    if store.header_fault is None:
        return
    found.faults.append(store.header_fault)
    if repair:
        set_aside(store.storage, store.log, NAME)
        restore_header(store.storage)
        found.done.append("store.json is written again from its copy")


def _folders(store: Store, found: Checked, *, repair: bool) -> None:
    for name in not_folders(store.storage):
        found.faults.append(f"{store}/{name}: expected a folder; found something else")
    if repair:
        found.done += clear_folders(store.storage)


def _log(store: Store, found: Checked, *, repair: bool) -> None:
    """Damaged or missing log entries: restored from the snapshot if it has them, else replaced by
    empty ones."""
    storage, id = store.storage, store.id
    last = last_entry(storage)
    entries = read_entries(storage, range(1, last + 1), id, again=True)
    known = read_snapshot(storage, id)
    if not known and storage.exists(SNAPSHOT) and repair:
        storage.remove(SNAPSHOT)  # written again by the next worker
    good = [n for n, entry in enumerate(entries, start=1) if not isinstance(entry, DamagedFile)]
    end = max([len(known), *good])
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, DamagedFile):
            found.faults.append(str(entry))
            if repair:
                found.done.append(_mended(store, number, known, end))
    if repair and last < len(known):
        for number in range(last + 1, len(known) + 1):
            found.done.append(_mended(store, number, known, end))


def _mended(store: Store, number: int, known: list[dict[str, Any]], end: int) -> str:
    name = entry_name(number)
    set_aside(store.storage, store.log, name)
    if number <= len(known):
        content = {key: value for key, value in known[number - 1].items() if key != "format"}
        what = "is written again from the log's snapshot"
    elif number <= end:
        content = {
            "event": "forget",
            "trials": [],
            "number": number,
            "store": store.id,
            "nonce": uuid.uuid4().hex,
        }
        what = "is lost; an empty entry takes its number"
    else:
        return f"{name} is set aside"
    store.storage.create(name, dumps(content))
    return f"{name} {what}"


def _trials(store: Store, found: Checked, *, repair: bool) -> None:
    seen = inspect(store.storage, store.log, kinds=("records", "weights"), again=True)
    found.faults += [f"trial {id}: {why}" for id, why in seen.left_out.items()]
    left_out = set(seen.left_out)
    denied = {id for id, why in seen.harmed.items() if why.endswith(REFUSED)}
    if repair:
        again = bool(seen.harmed)  # a failing disk flips bits without changing the file's time
        try:
            found.done += recover(store.storage, store.log, thorough=True, again=again)
        except PermissionError as error:
            found.left.append(message(error))
        seen = inspect(store.storage, store.log, kinds=("records", "weights"))
    found.whole = len(seen.whole)
    # a collected store has no plan: it lacks the trials found damaged
    wanted = left_out if store.is_collected else {trial.id for trial in store.planned()}
    found.missing = len(wanted - denied - set(seen.whole)) if found.faults else 0


def _tables(store: Store, found: Checked, *, repair: bool) -> None:
    damaged = store.damaged_tables()
    if damaged:
        found.faults.append(f"{len(damaged)} tables of packs are damaged, the first: {damaged[0]}")
    if damaged and repair:
        for name in damaged:
            store.storage.remove(name)
        store.trials()  # makes them again
        found.done.append("the tables are made again from the trials")


def _interventions(store: Store, found: Checked, *, repair: bool) -> None:
    for fault in interventions.faults(store):
        found.faults.append(f"{fault.name}: {fault.why}")
        if repair and fault.is_closed:
            found.left.append(f"{fault.name} may be whole, and stays as it is")
        elif repair:
            left = interventions.set_aside(store, fault)
            what = "is set aside" if left else "counts no longer"
            found.done.append(f"{fault.name} {what}; rankscope intervene makes it again")


def _comparison(
    store: Store, found: Checked, *, repair: bool, base_of: Callable[[str], str] | None
) -> None:
    fault = store.comparison_fault()
    if fault is None or not found.whole:
        return
    if store.is_collected and "damaged" not in fault:  # made where full fine-tunes are added
        return
    found.faults.append(fault)
    if not repair:
        return
    try:
        from rankscope.sweep.run import make_comparison
        from rankscope.sweep.sizes import model_path

        make_comparison(store, base_of=base_of or (lambda name: model_path(store.study, name)))
        found.done.append("the comparison is made again from the trials")
    except (OSError, ValueError) as error:
        found.done.append(
            f"the comparison could not be made again ({message(error)}); the next run makes it"
        )
