"""Who trains what: a log of decisions, each a file that exactly one worker can create.

``log/00000001.json``, ``log/00000002.json``, ...: to decide something, a worker reads the log to
its end and creates the next file. If another worker created it first, it reads that and decides
again. So all decisions of all workers have one order, and each is taken with all earlier ones
known. (Delta Lake's transaction log works like this: Armbrust et al., VLDB 2020. A disk or an
object store need only be able to create a file that isn't there.)

    claim    trials, by a worker       the entry's number is the claim's fencing number; ``beside``:
                                       all that it trains, where that is more (``together``)
    commit   of a claim                its results count from now on, with their files' digests
    release  of a claim                its worker stopped on purpose
    revoke   of a claim                its worker is dead, another one says
    fail     of a claim                with the reason
    forget   trials                    earlier failures and results of theirs no longer count;
                                       ``edits``: what is kept of edited trials

A claim is live until one of the others ends it, and only a live one can be committed: a worker
that was taken for dead finds its claim revoked, however late it wakes up. A lost entry
(log_files.py) changes nothing: every entry that ends a claim names its trials again, so that a
commit counts even where its claim is lost.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankscope.store.files import DamagedFile, dumps
from rankscope.store.log_files import (
    entry_name,
    extend_snapshot,
    is_worth_it,
    last_entry,
    read_entries,
    read_entry,
    read_snapshot,
)
from rankscope.store.storage import Storage
from rankscope.system import NotAFile

_LOOKS = 20  # at a name that exists and can't be read: a network's file systems may be late


@dataclass(frozen=True)
class Claim:
    """A right to train these trials, until it is ended."""

    number: int  # the fencing number: a later claim has a higher one
    worker: str
    host: str
    boot: str  # of which start of which machine
    trials: tuple[str, ...]
    # all that its worker trains, in order: with those beside which its trials were trained first
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    entry: int
    reason: str


@dataclass(frozen=True)
class Commit:
    """What a commit says of one trial."""

    claim: int
    result: Mapping[str, Any] | None  # what done.json says; older logs lack it
    files: (
        Mapping[str, list[Any]] | None
    )  # name -> size, time of the last change, SHA-256; older logs lack it


@dataclass(frozen=True)
class Edits:
    """What was kept of one edited trial (interventions.py)."""

    weights: Mapping[str, str]  # the SHA-256 of the files that were edited
    files: Mapping[str, list[Any]]  # as in a commit


class Log:
    """The log and what follows from it. Safe to use from several threads."""

    def __init__(self, storage: Storage, store_id: str = "") -> None:
        self.storage, self.store_id = storage, store_id
        self.length = 0
        self.live: dict[int, Claim] = {}
        self.ended: dict[frozenset[str], list[int]] = {}  # trials -> claims released or revoked
        self.committed: set[int] = set()
        self.done: dict[str, Commit] = {}
        # trial -> those that it was first trained together with, itself among them; kept when its
        # result no longer counts
        self.together: dict[str, tuple[str, ...]] = {}
        self.tables: dict[int, list[Any]] = {}  # claim -> size and SHA-256 of its pack's table
        self.failures: dict[str, list[Failure]] = {}
        self.deaths: Counter[str] = Counter()
        self.edits: dict[tuple[str, str], Edits] = {}  # of settings and trial
        self.lost: dict[int, str] = {}  # number of an entry -> why it can't be read
        self._in_snapshot = 0
        self._holder: dict[str, int] = {}
        self._lock = threading.RLock()

    def refresh(self) -> None:
        """Reads the entries that are new."""
        with self._lock:
            if not self.length:
                self._read_beginning()
            while True:
                try:
                    data = self.storage.read(entry_name(self.length + 1))
                except (FileNotFoundError, NotADirectoryError):
                    return
                except NotAFile as error:
                    self._lose(str(error))
                    continue
                self._take(data)

    def append(self, decide: Callable[[], dict[str, Any] | None]) -> int | None:
        """Adds the entry that ``decide`` returns, and asks it again whenever another worker was
        first.

        -> the entry's number; None when ``decide`` returns None: nothing is to be decided any more
        """
        with self._lock:
            looks = 0
            while True:
                self.refresh()
                entry = decide()
                if entry is None:
                    return None
                number = self.length + 1
                # the time is for people; nothing is ever decided by a clock that can be set
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                mark = {"at": at, "nonce": uuid.uuid4().hex}  # no two attempts are equal
                whole = {**entry, "number": number, "store": self.store_id, **mark}
                if self.storage.create(entry_name(number), dumps(whole)):
                    self._apply(entry)
                    if is_worth_it(self._in_snapshot, self.length):
                        self._in_snapshot = extend_snapshot(
                            self.storage, self.store_id, self.length
                        )
                    return self.length
                self.refresh()
                looks = looks + 1 if self.length < number else 0
                if looks:
                    time.sleep(0.05)
                if looks == _LOOKS:
                    self._lose(f"{self.storage}/{entry_name(number)}: no file that can be read")

    def holder(self, trial: str) -> Claim | None:
        """The live claim on that trial."""
        number = self._holder.get(trial)
        return None if number is None else self.live[number]

    def claim(
        self, trials: list[str], *, worker: str, host: str, boot: str, beside: Sequence[str] = ()
    ) -> int | None:
        """A claim on all of these trials, or None: one of them is done or held."""

        def decide() -> dict[str, Any] | None:
            if any(trial in self.done or trial in self._holder for trial in trials):
                return None
            return {
                "event": "claim",
                "worker": worker,
                "host": host,
                "boot": boot,
                "trials": trials,
            } | ({"beside": list(beside)} if beside else {})

        return self.append(decide)

    def end(self, number: int, how: str, **more: Any) -> bool:
        """Commits, releases, revokes or fails a claim. -> False: somebody ended it before"""

        def decide() -> dict[str, Any] | None:
            if number not in self.live:
                return None
            return {"event": how, "claim": number, "trials": list(self.live[number].trials), **more}

        return self.append(decide) is not None

    def forget(
        self, trials: Iterable[str], *, only: Mapping[str, Commit] | None = None
    ) -> list[str]:
        """Gives these trials a fresh start, unless they are being trained. ``only``: those whose
        commit still is the one given. -> those it was given to"""
        given: list[str] = []

        def decide() -> dict[str, Any] | None:
            known = self.done.keys() | self.failures.keys() | self.deaths.keys()
            free = [t for t in trials if t not in self._holder and t in known]
            given[:] = [t for t in free if only is None or self.done.get(t) is only.get(t)]
            return {"event": "forget", "trials": list(given)} if given else None

        self.append(decide)
        return given

    def edited(self, settings: str, trial: str, edits: Edits | None) -> None:
        """Records what was kept of an edited trial; None: it no longer counts."""
        said = [settings, trial, edits and [dict(edits.weights), dict(edits.files)]]
        # of another event older versions would say that it is lost; this one they read
        self.append(lambda: {"event": "forget", "trials": [], "edits": [said]})

    def _read_beginning(self) -> None:
        for entry in read_snapshot(self.storage, self.store_id):
            self._apply(entry)
        self._in_snapshot = self.length
        numbers = range(self.length + 1, last_entry(self.storage) + 1)
        for found in read_entries(self.storage, numbers, self.store_id):
            if isinstance(found, DamagedFile):
                self._lose(str(found))
            else:
                self._apply(found)

    def _take(self, data: bytes) -> None:
        try:
            entry = read_entry(self.storage, self.length + 1, self.store_id, data)
        except DamagedFile as error:
            self._lose(str(error))
        else:
            self._apply(entry)

    def _lose(self, reason: str) -> None:
        self.length += 1
        self.lost[self.length] = reason

    def _apply(self, entry: dict[str, Any]) -> None:
        """Draws the conclusions; an entry that lacks what its event needs is lost."""
        try:
            {"claim": self._claimed, "forget": self._forgotten}.get(entry["event"], self._ended)(
                entry
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            name = entry_name(self.length + 1)
            self._lose(
                f"{self.storage}/{name}: expected an entry that rankscope wrote; found none "
                f"({error!r})"
            )
        else:
            self.length += 1

    def _claimed(self, entry: dict[str, Any]) -> None:
        number, trials = self.length + 1, tuple(map(str, entry["trials"]))
        beside = tuple(map(str, entry.get("beside", ())))
        who = (entry["worker"], entry["host"], entry["boot"])
        self.live[number] = Claim(number, *who, trials, beside)
        self._holder |= dict.fromkeys(trials, number)

    def _forgotten(self, entry: dict[str, Any]) -> None:
        for trial in map(str, entry["trials"]):
            self.failures.pop(trial, None)
            self.deaths.pop(trial, None)
            self.done.pop(trial, None)
        for settings, trial, edits in entry.get("edits", []):
            self.edits.pop((settings, trial), None)
            if edits is not None:
                weights, files = edits
                kept = {name: [int(size), at, str(sha)] for name, (size, at, sha) in files.items()}
                self.edits[settings, trial] = Edits({**weights}, kept)

    def _ended(self, entry: dict[str, Any]) -> None:
        number, event = int(entry["claim"]), entry["event"]
        claim = self.live.get(number)
        results, files = entry.get("results") or {}, entry.get("files") or {}
        trials = tuple(results) or tuple(entry.get("trials", claim.trials if claim else ()))
        if event not in ("commit", "release", "revoke", "fail"):
            raise ValueError(event)
        if event == "fail":
            failure = Failure(self.length + 1, str(entry["reason"]))
            for trial in trials:
                self.failures.setdefault(trial, []).append(failure)
        elif event == "commit":
            self.committed.add(number)
            if "table" in entry:
                self.tables[number] = entry["table"]
            for trial in trials:  # the first commit counts, should the claim between have been lost
                self.done.setdefault(trial, Commit(number, results.get(trial), files.get(trial)))
                self.together.setdefault(trial, (claim.beside if claim else ()) or trials)
        else:
            self.ended.setdefault(frozenset(trials), []).append(number)
            if event == "revoke":
                self.deaths.update(trials)
        if claim is not None:
            del self.live[number]
            for trial in claim.trials:
                if self._holder.get(trial) == number:
                    del self._holder[trial]
