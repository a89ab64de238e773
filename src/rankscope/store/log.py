"""Who trains what: a log of decisions, each a file that exactly one worker can create.

``log/00000001.json``, ``log/00000002.json``, ...: whoever wants to decide something reads the log to its end, and creates
the next file; who comes too late reads on and thinks again. So all decisions of all workers have one order, and a
decision is taken with all earlier ones known. (The transaction log of Delta Lake works like this: Armbrust et al.,
VLDB 2020. It asks nothing of a disk or an object store but to create a file that isn't there.)

    claim    trials, by a worker       the entry's number is the claim's fencing number
    commit   of a claim                its results count, all of them, from this moment on; they are said, too
    release  of a claim                its worker stopped on purpose
    revoke   of a claim                its worker is dead, another one says
    fail     of a claim                with the reason
    forget   trials                    earlier failures and results of theirs count no more

A claim is live until one of the others ends it, and only a live one can be committed: a worker that was taken for dead
finds its claim revoked, however late it wakes up.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankscope.store.files import dumps, loads
from rankscope.store.log_snapshot import (
    LOG,
    entries,
    entry_name,
    extend_snapshot,
    is_worth_it,
    read_snapshot,
)
from rankscope.store.storage import Storage


@dataclass(frozen=True)
class Claim:
    """A right to train these trials, until it is ended."""

    number: int  # the fencing number: a later claim has a higher one
    worker: str
    host: str
    boot: str  # of which start of which machine
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    entry: int
    reason: str


class Log:
    """The log and what follows from it. Safe to use from several threads."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.length = 0
        self.live: dict[int, Claim] = {}
        self.ended: dict[
            frozenset[str], list[int]
        ] = {}  # trials -> their claims that were released or revoked
        self.committed: set[int] = set()
        self.done: set[str] = set()
        self.results: dict[str, dict[str, Any]] = {}  # what done.json says, of the done; older logs lack it
        self.failures: dict[str, list[Failure]] = {}
        self.deaths: Counter[str] = Counter()
        self._in_snapshot = 0
        self._holder: dict[str, int] = {}
        self._lock = threading.RLock()

    def refresh(self) -> None:
        """Reads the entries that are new."""
        with self._lock:
            if not self.length:
                for entry in read_snapshot(self.storage):
                    self._apply(entry)
                self._in_snapshot = self.length
                for entry in entries(self.storage, range(self.length + 1, len(self.storage.names(LOG)) + 1)):
                    self._apply(entry)
            while True:
                name = entry_name(self.length + 1)
                try:
                    data = self.storage.read(name)
                except FileNotFoundError:
                    return
                self._apply(loads(data, f"{self.storage}/{name}"))

    def append(self, decide: Callable[[], dict[str, Any] | None]) -> int | None:
        """Adds the entry that ``decide`` returns, and asks it again whenever another worker was first.

        -> the entry's number; None when ``decide`` returns None: nothing is to be decided any more
        """
        with self._lock:
            while True:
                self.refresh()
                entry = decide()
                if entry is None:
                    return None
                # the time is for people; nothing is ever decided by a clock that can be set
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                stamped = {**entry, "at": at, "nonce": uuid.uuid4().hex}  # no two attempts are equal
                if self.storage.create(entry_name(self.length + 1), dumps(stamped)):
                    self._apply(entry)
                    if is_worth_it(self._in_snapshot, self.length):
                        self._in_snapshot = extend_snapshot(self.storage, self.length)
                    return self.length

    def holder(self, trial: str) -> Claim | None:
        """The live claim on that trial."""
        number = self._holder.get(trial)
        return None if number is None else self.live[number]

    def claim(self, trials: list[str], *, worker: str, host: str, boot: str) -> int | None:
        """A claim on all of these trials, or None: one of them is done or held."""

        def decide() -> dict[str, Any] | None:
            if any(trial in self.done or trial in self._holder for trial in trials):
                return None
            return {"event": "claim", "worker": worker, "host": host, "boot": boot, "trials": trials}

        return self.append(decide)

    def end(self, number: int, how: str, **more: Any) -> bool:
        """Commits, releases, revokes or fails a claim. -> False: somebody ended it before"""
        entry = {"event": how, "claim": number, **more}
        return self.append(lambda: entry if number in self.live else None) is not None

    def forget(self, trials: list[str]) -> None:
        """Gives these trials a fresh start, unless they are being trained."""

        def decide() -> dict[str, Any] | None:
            known = [t for t in trials if t not in self._holder and (t in self.done or t in self.failures)]
            return {"event": "forget", "trials": known} if known else None

        self.append(decide)

    def _apply(self, entry: dict[str, Any]) -> None:
        self.length += 1
        event = entry["event"]
        if event == "claim":
            trials = tuple(entry["trials"])
            self.live[self.length] = Claim(self.length, entry["worker"], entry["host"], entry["boot"], trials)
            self._holder |= dict.fromkeys(trials, self.length)
            return
        if event == "forget":
            for trial in entry["trials"]:
                self.failures.pop(trial, None)
                self.deaths.pop(trial, None)
                self.done.discard(trial)
                self.results.pop(trial, None)
            return
        claim = self.live.pop(entry["claim"])
        for trial in claim.trials:
            del self._holder[trial]
        if event == "commit":
            self.committed.add(claim.number)
            self.done.update(claim.trials)
            self.results |= entry.get("results", {})
        elif event == "fail":
            for trial in claim.trials:
                self.failures.setdefault(trial, []).append(Failure(self.length, entry["reason"]))
        else:
            assert event in ("release", "revoke"), event
            self.ended.setdefault(frozenset(claim.trials), []).append(claim.number)
            if event == "revoke":
                self.deaths.update(claim.trials)
