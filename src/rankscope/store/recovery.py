"""Sets a store right before and after work: finishes what a dead worker left half done,
sets harmed trials aside."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rankscope.store.integrity import Inspection, inspect, is_whole, own_record
from rankscope.store.log import Log
from rankscope.store.storage import Storage
from rankscope.store.trial_dir import DONE, result_in

HARMED = "harmed"


def place(storage: Storage, log: Log, claim: int) -> None:
    """Moves the trials of a committed claim from its folder in work/ to trials/. Anybody
    may go on with it halfway."""
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
    """Puts trials in their place where a worker died between its commit and that; takes up whole
    trials whose commit is lost; sets aside what is harmed, so that it is trained again.
    ``thorough``: reads every file that changed since its commit, weights too; ``again``: every
    file, changed or not. -> what was done, a line each
    """
    log.refresh()
    for name in storage.names("work"):
        if name.isdigit() and int(name) in log.committed:
            place(storage, log, int(name))
    kinds = ("records", "weights") if thorough else ()
    found = inspect(storage, log, kinds=kinds, again=again)
    return [*_take_up(storage, log, found), *_set_aside_harmed(storage, log, found)]


def clean(storage: Storage, log: Log) -> list[str]:
    """Recovers, and removes what ended claims have left behind: for when nothing is left to
    train."""
    lines = recover(storage, log, thorough=False)
    for name in storage.names("work"):
        if name.isdigit() and int(name) <= log.length and int(name) not in log.live:
            storage.remove(f"work/{name}")
    return lines


def _take_up(storage: Storage, log: Log, found: Inspection) -> list[str]:
    """Commits again, claim by claim, the trials that say themselves that they belong here."""
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
    given = log.forget(
        found.harmed, only={id: log.done[id] for id in found.harmed if id in log.done}
    )
    for id in [*given, *found.unknown]:
        where = set_aside(storage, log, f"trials/{id}")
        what = f"set aside in {storage}/{where}" if where else "nothing is left of it"
        lines.append(f"trial {id}: {found.left_out[id]}; {what}")
    return lines


def set_aside(storage: Storage, log: Log, name: str) -> str | None:
    """Moves a file or a folder to harmed/, where nothing is ever deleted. -> where it
    lies; None: it was not there"""
    if not storage.names(name) and not storage.exists(name):
        return None
    taken = set(storage.names(HARMED))
    last = name.rsplit("/", 1)[-1]
    target = next(f"{last}-{n}" for n in range(1, len(taken) + 2) if f"{last}-{n}" not in taken)
    storage.set_aside(name, f"{HARMED}/{target}")
    log.refresh()
    commit = log.done.get(last) if name.startswith("trials/") else None
    if commit is not None and is_whole(
        storage, f"{HARMED}/{target}", commit
    ):  # trained again just then
        storage.move(f"{HARMED}/{target}", name)
    return f"{HARMED}/{target}"
