"""Repairs a store before and after a run: completes the commits of dead workers and sets damaged
trials aside."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections import defaultdict
from typing import Any

from rankscope.store.integrity import REFUSED, Inspection, inspect, is_whole, own_record
from rankscope.store.log import Log
from rankscope.store.storage import HARMED, LocalStorage, Storage, free_name
from rankscope.store.trial_dir import DONE, result_in

FOLDERS = ("trials", "log", "work", "beats", "cache", "cache/packs", "interventions")


def place(storage: Storage, log: Log, claim: int) -> None:
    """Moves the trials of a committed claim from its folder in work/ to trials/. Any worker may
    continue an interrupted move."""
    for trial in storage.names(f"work/{claim}/trials"):
        commit = log.done.get(trial)
        if (
            commit is None or commit.claim != claim
        ):  # another commit of it counts, or it was forgotten since
            continue
        source, target = f"work/{claim}/trials/{trial}", f"trials/{trial}"
        if storage.move(source, target) or is_whole(storage, target, commit):
            continue
        if storage.exists(f"{source}/{DONE}"):
            set_aside(storage, log, target)
            storage.move(source, target)
    storage.remove(f"work/{claim}")


def recover(storage: Storage, log: Log, *, thorough: bool, again: bool = False) -> list[str]:
    """Moves committed trials to trials/ where their worker died before it did; records whole trials
    whose commit is lost; sets damaged trials aside, so that they are trained again.
    ``thorough``: reads every file that changed since its commit, weights too; ``again``: every
    file, changed or not. -> what was done, a line each
    """
    lines = clear_folders(storage)
    log.refresh()
    for name in storage.names("work"):
        if _is_number(name) and int(name) in log.committed:
            place(storage, log, int(name))
    kinds = ("records", "weights") if thorough else ()
    found = inspect(storage, log, kinds=kinds, again=again)
    return [*lines, *_take_up(storage, log, found), *_set_aside_harmed(storage, log, found)]


def not_folders(storage: Storage) -> list[str]:
    """Names of the store's folders that something else has: a file, a broken link."""
    if not isinstance(storage, LocalStorage):
        return []
    edited: list[str] = []
    with contextlib.suppress(PermissionError):
        edited = [f"interventions/{key}" for key in storage.names("interventions")]
    taken = [name for name in (HARMED, *FOLDERS, *edited) if storage.exists(name)]
    return [name for name in taken if not os.path.isdir(storage.root / name)]


def clear_folders(storage: Storage) -> list[str]:
    """Sets these aside. -> what was done, a line each"""
    lines = []
    for name in not_folders(storage):
        target = free_name(storage, name) if name != HARMED else f"{HARMED}-{uuid.uuid4().hex[:8]}"
        storage.set_aside(name, target)
        lines.append(f"{storage}/{name}: expected a folder; set aside in {storage}/{target}")
    return lines


def clean(storage: Storage, log: Log) -> list[str]:
    """Recovers the store and removes the folders of ended claims, once nothing is left to train."""
    lines = recover(storage, log, thorough=False)
    for name in storage.names("work"):
        if _is_number(name) and int(name) <= log.length and int(name) not in log.live:
            storage.remove(f"work/{name}")
    return lines


def _is_number(name: str) -> bool:
    """Whether it is the name of a claim's folder; ``isdigit`` alone also holds for other digits
    than 0 to 9."""
    return name.isascii() and name.isdigit()


def _take_up(storage: Storage, log: Log, found: Inspection) -> list[str]:
    """Commits again, claim by claim, the trials whose done.json names this store."""
    own: dict[int, dict[str, Any]] = defaultdict(dict)
    for id in list(found.unknown):
        storage.fetch_below(f"trials/{id}")
        said = own_record(storage.root / "trials" / id)
        if isinstance(said, str):
            found.unknown[id] = f"{found.unknown[id]}; {said}"
        elif not log.store_id or said[0]["store"] != log.store_id:
            found.unknown[id] = "it belongs to another store"
        else:
            own[said[0]["claim"]][id] = said
    lines = []
    for claim, trials in own.items():
        holders = {holder.number for id in trials if (holder := log.holder(id)) is not None}
        number = claim if holders else log.claim(list(trials), worker="recovered", host="", boot="")
        results = {id: result_in(done) for id, (done, _) in trials.items()}
        files = {id: files for id, (_, files) in trials.items()}
        if number is not None and log.end(number, "commit", results=results, files=files):
            lines += [f"trial {id}: its commit was lost; it is recorded again" for id in trials]
        for id in trials:  # else another worker trains it again
            del found.unknown[id]
    return lines


def _set_aside_harmed(storage: Storage, log: Log, found: Inspection) -> list[str]:
    lines = []
    denied = {id: why for id, why in found.harmed.items() if why.endswith(REFUSED)}
    harmed = [id for id in found.harmed if id not in denied]
    given = log.forget(harmed, only={id: log.done[id] for id in harmed if id in log.done})
    for id in [*given, *found.unknown]:
        try:
            where = set_aside(storage, log, f"trials/{id}")
        except PermissionError:  # such as lost+found
            if id in given:
                raise
            what = "left where it is"
        else:
            what = f"set aside in {storage}/{where}" if where else "nothing is left of it"
        lines.append(f"trial {id}: {found.left_out[id]}; {what}")
    for id, why in denied.items():  # it may be whole
        raise PermissionError(
            f"{storage}/trials/{id}: {why}. Let this user read it, then run again"
        )
    return lines


def set_aside(storage: Storage, log: Log, name: str) -> str | None:
    """Moves a file or a folder to harmed/, where nothing is ever deleted. -> its new name; None if
    it did not exist"""
    if not storage.names(name) and not storage.exists(name):
        return None
    last, target = name.rsplit("/", 1)[-1], free_name(storage, name)
    storage.set_aside(name, target)
    log.refresh()
    commit = log.done.get(last) if name.startswith("trials/") else None
    if commit is not None and is_whole(storage, target, commit):  # trained again just then
        storage.move(target, name)
    return target
