"""Heartbeats and locks, which tell workers who is alive. Only steady clocks are compared, never one
that can be set.

On one machine the kernel knows: a worker holds a lock on a file in the temporary folder, and loses
it when it dies, however it dies. Across machines a worker counts its heartbeats; another one that
sees the count unchanged for ``PATIENCE`` seconds of its own steady clock takes it for dead. That
may be wrong (a stopped process, a cut network): then the claim is revoked, and the worker that
wakes up again can't commit it (see log.py).
"""

from __future__ import annotations

import contextlib
import functools
import math
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rankscope import system
from rankscope.store.files import dumps, loads
from rankscope.store.log import Claim, Log

BEAT = 5.0  # seconds between two heartbeats
PATIENCE = 60.0  # seconds without a heartbeat after which a worker is taken for dead


class LeaseLost(Exception):
    """The claim was revoked: somebody else trains these trials now."""


class WorkerLock:
    """A worker's name, and the lock that the kernel drops with the worker."""

    def __init__(self) -> None:
        self.worker, self.host, self.boot = uuid.uuid4().hex, platform.node(), boot()
        self._file = _lock_file(self.worker).open("w")
        system.lock(self._file)

    def leave(self, *, holding: bool) -> None:
        """Drops the lock. ``holding``: a claim is left that could not be ended (a full disk),
        so others must see it drop."""
        if not holding:
            forget(self.worker)
        self._file.close()


def forget(worker: str) -> None:
    """Removes a dead worker's lock file."""
    with contextlib.suppress(OSError):
        _lock_file(worker).unlink()


def is_gone(claim: Claim) -> bool | None:
    """Whether the kernel says that this claim's worker is dead; None: it worked elsewhere, or
    cannot be found."""
    if claim.boot != boot() or not claim.worker.isalnum():
        return None
    locked = system.is_locked(_lock_file(claim.worker))
    return None if locked is None else not locked


@functools.cache
def boot() -> str:
    """``system.boot``; a name that nobody else has where it is unknown: then only the heartbeat
    counts."""
    return system.boot() or uuid.uuid4().hex


def _lock_file(worker: str) -> Path:
    return system.private_dir() / worker


class FailureDetector:
    """Follows the heartbeats of other workers and remembers when each was last seen to change."""

    def __init__(
        self,
        log: Log,
        *,
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
        every: float = BEAT,
    ) -> None:
        self._log, self._clock, self._patience, self._every = log, clock, patience, every
        self._seen: dict[int, tuple[int, float, float]] = {}  # claim -> count, new since, looked at

    def is_dead(self, claim: Claim) -> bool:
        if is_gone(claim):
            return True
        now = self._clock()
        last, since, looked = self._seen.get(claim.number, (-1, now, -math.inf))
        if now - looked >= self._every:
            count = last_heartbeat(self._log, claim.number)["count"]
            since = since if count == last else now
            self._seen[claim.number] = (count, since, now)
        return now - since > self._patience


def last_heartbeat(log: Log, number: int) -> dict[str, Any]:
    """The last heartbeat of a claim: ``count``, and ``steps`` that were taken since it
    began (over all its trials)."""
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # lost or damaged: the next one is not
        said = loads(log.storage.read(beat(number)), beat(number))
        return {"count": int(said["count"]), "steps": int(said["steps"])}
    return {"count": 0, "steps": 0}


class Lease:
    """A live claim, as its worker holds it."""

    def __init__(self, log: Log, number: int, *, every: float = BEAT) -> None:
        self.log, self.number, self.every = log, number, every
        self.steps = 0
        self._count = 0
        self._ended = threading.Event()

    def progress(self, steps: int) -> None:
        """Counts optimiser steps. ``LeaseLost`` if the claim was revoked."""
        self.steps += steps
        if self.number not in self.log.live:
            raise LeaseLost(f"claim {self.number} was revoked")

    @contextlib.contextmanager
    def beating(self, each: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Sends heartbeats from its own thread, so that a long step or evaluation does not pass
        for a dead worker.

        ``each`` is called at every heartbeat. The log is read then, too, so that a revocation is
        noticed soon.
        """
        thread = threading.Thread(target=self._beat, args=(each,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            with contextlib.suppress(OSError):
                self.log.storage.remove(beat(self.number))

    def _beat(self, each: Callable[[], None]) -> None:
        while self.number in self.log.live:
            self._count += 1
            with contextlib.suppress(
                OSError
            ):  # a full disk or a lost network: the next one may get through
                content = {"count": self._count, "steps": self.steps}
                self.log.storage.write(beat(self.number), dumps(content), durable=False)
                each()
                self.log.refresh()
            if self._ended.wait(self.every):
                return

    def end(self, how: str, **more: Any) -> None:
        """``LeaseLost`` if another worker ended it before."""
        if not self.log.end(self.number, how, **more):
            raise LeaseLost(f"claim {self.number} was revoked")


def beat(number: int) -> str:
    return f"beats/{number}.json"
