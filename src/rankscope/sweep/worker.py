"""The loop of every worker: claim a pack, train it, commit it."""

from __future__ import annotations

import contextlib
import re
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rankscope.process import stopping_between_steps
from rankscope.store.lease import (
    FailureDetector,
    Lease,
    LeaseLost,
    WorkerLock,
    beat,
    forget,
    is_gone,
)
from rankscope.store.log import Log
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.trial import Trial
from rankscope.sweep.installed import changed_code
from rankscope.sweep.trackers import Trackers

DEATHS = 20  # after so many deaths a pack counts as failed: most likely it runs out of memory
POLL = 0.5  # seconds between two looks for work, when others hold all there is


class TrainPack(Protocol):
    """Trains a pack into its folders (empty but for trial.json) and finishes each of them.

    Calls ``progress`` after every optimiser step with the steps it took, summed over the pack's
    trials; lets what that raises pass. ``scratch`` is a local folder of the pack: what is written
    there (and replaced by renaming) is there again when another worker goes on after this one's
    death; the trials' folders then are empty again.
    """

    def __call__(
        self,
        trials: Sequence[Trial],
        folders: Sequence[TrialDir],
        progress: Callable[[int], None],
        *,
        scratch: Path,
    ) -> None: ...


@dataclass
class Outcome:
    """What one worker did."""

    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def begun(store: str | Path | None) -> Store | None:
    """The store, if it exists."""
    try:
        return None if store is None else Store(store)
    except FileNotFoundError:
        return None


def missing(store: Store | None, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have no result yet."""
    done = set() if store is None else set(store.done_ids())
    return [trial for trial in trials if trial.id not in done]


def given_up(log: Log, trial: str, *, retries: int) -> str | None:
    """Why that trial is not tried again, or None."""
    failures = log.failures.get(trial, [])
    if len(failures) > retries:
        return failures[-1].reason
    if log.deaths[trial] >= DEATHS:
        return f"{DEATHS} workers died while they trained it (out of memory?)"
    return None


class Worker:
    """Visits a store until every trial of ``packs`` is done or given up, by itself or by others.

    ``KeyboardInterrupt`` and ``OSError`` (the store itself: no use in going on) end the visit: the
    claim is released, and whatever was committed stays.
    """

    def __init__(
        self,
        store: Store,
        packs: Sequence[Sequence[Trial]],
        train_pack: TrainPack,
        *,
        retries: int,
        provenance: dict[str, Any],
        progress: Callable[[Sequence[Trial], int], None] = lambda pack, steps: None,
        trackers: Trackers | None = None,
    ) -> None:
        self.store, self.log, self.train_pack = store, store.log, train_pack
        self.retries, self.provenance, self.progress = retries, provenance, progress
        self.trackers = trackers
        self.packs = [{trial.id: trial for trial in pack} for pack in packs]
        self.detector = FailureDetector(self.log)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        self.store.recover()
        self.lock = WorkerLock()
        try:
            while True:
                self._revoke_the_dead()
                claimed = self._claim()
                if claimed:
                    self._train(*claimed)
                elif any(self._left()):  # held by others, who may yet die
                    time.sleep(POLL)
                elif not self.store.clean() or not any(self._left()):  # nothing new was damaged
                    return self.outcome
        finally:
            said = False
            try:
                said = self._let_go()
            finally:
                self.lock.leave(holding=not said)

    def _let_go(self) -> bool:
        """Releases what this worker still holds, if anything. -> whether the log could be
        written"""
        with contextlib.suppress(OSError):
            self.log.refresh()  # a claim may be there although writing it was interrupted
            for claim in list(self.log.live.values()):
                if claim.worker == self.lock.worker:
                    self.log.end(claim.number, "release")
            return True
        return False  # other workers will detect it

    def _left(self) -> Iterator[tuple[list[str], tuple[str, ...]]]:
        """The ids that still want training, pack by pack, each with all that are to be trained
        with it. What has failed before is tried alone."""
        for pack in self.packs:
            left = [id for id in pack if id not in self.log.done]
            left = [id for id in left if given_up(self.log, id, retries=self.retries) is None]
            groups: dict[tuple[str, ...], list[str]] = {}
            for id in (id for id in left if id not in self.log.failures):
                groups.setdefault(self._together(id, pack), []).append(id)
            yield from ((ids, together) for together, ids in groups.items())
            yield from (([id], ()) for id in left if id in self.log.failures)

    def _together(self, id: str, pack: Collection[str]) -> tuple[str, ...]:
        """The trials that this one was first trained with, if they are in one pack of this
        worker's: with them it is again what it was, to the last bit. Alone, or beside others, sums
        are rounded in another order."""
        found = set(self.log.together.get(id, ()))
        return tuple(filter(found.__contains__, pack)) if found.issubset(pack) else ()

    def _claim(self) -> tuple[Lease, list[Trial], list[Trial]] | None:
        """The first pack that nobody holds; else what is free of one: workers with less memory hold
        parts of it. -> the lease, its trials, and all that are to be trained"""
        trials = {id: trial for pack in self.packs for id, trial in pack.items()}
        who = {"worker": self.lock.worker, "host": self.lock.host, "boot": self.lock.boot}
        for whole in (True, False):
            for ids, together in self._left():
                free = [id for id in ids if not self.log.holder(id)]
                if not free or (whole and free != ids):
                    continue
                more = together if len(together) > len(free) else ()
                number = self.log.claim(free, beside=more, **who)
                if number is not None:
                    own, all_ = ([trials[id] for id in part] for part in (free, more or free))
                    return Lease(self.log, number), own, all_
        return None

    def _revoke_the_dead(self) -> None:
        self.log.refresh()
        for claim in list(self.log.live.values()):
            if claim.worker != self.lock.worker and self.detector.is_dead(claim):
                self.log.end(claim.number, "revoke", by=self.lock.worker)
                self.store.storage.remove(beat(claim.number))
                if is_gone(claim):
                    forget(claim.worker)

    def _train(self, lease: Lease, pack: list[Trial], together: list[Trial]) -> None:
        """Trains ``together`` and commits ``pack``, a part of it or all."""
        ids = [trial.id for trial in pack]
        with (
            self.store.claim(lease.number).dir(ids) as work,
            stopping_between_steps() as stop_if_asked,
        ):
            all_folders = [
                TrialDir(work / ("trials" if trial.id in ids else "beside") / trial.id)
                for trial in together
            ]
            folders = [folder for folder in all_folders if folder.path.name in ids]
            taken = 0

            def progress(steps: int) -> None:
                nonlocal taken
                before, taken = taken, taken + steps
                own = taken * len(pack) // len(together) - before * len(pack) // len(together)
                lease.progress(own)
                self.progress(pack, own)
                stop_if_asked()

            try:
                with lease.beating(lambda: self.store.claim(lease.number).flush_scratch()):
                    for trial, folder in zip(together, all_folders, strict=True):
                        folder.begin(trial, provenance=self.provenance)
                    self.train_pack(together, all_folders, progress, scratch=work / "scratch")
                    assert all(folder.is_done for folder in folders), (
                        "training ended without a result"
                    )
                    log = self.trackers.read(folders) if self.trackers else None
                    self._commit(lease, folders)
            except LeaseLost:
                return
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):
                    self.store.claim(lease.number).flush_scratch()
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, it is recorded
                self._failed(lease, ids, error)
            else:
                self.store.claim(lease.number).place()
                self.outcome.trained += ids
                if log is not None:
                    log()

    def _commit(self, lease: Lease, folders: Sequence[TrialDir]) -> None:
        """Makes the pack's results count, once all of its files are safe."""
        files = {
            folder.path.name: folder.seal(store=self.store.id, claim=lease.number)
            for folder in folders
        }
        claim = self.store.claim(lease.number)
        claim.flush()
        table = claim.write_table(folders)
        results = {folder.path.name: folder.result() for folder in folders}
        lease.end("commit", results=results, files=files, table=table)

    def _failed(self, lease: Lease, ids: list[str], error: Exception) -> None:
        """Records the failure and continues; raises if the store itself is the cause."""
        self.log.refresh()
        if lease.number not in self.log.live:  # the trials belong to another worker now
            return
        if (line := changed_code(error)) is not None:
            raise OSError(line) from None
        if isinstance(error, OSError):
            raise error if error.filename else OSError(f"{self.store}: {error}") from None
        if re.search(
            r"\(os error \d+\)", str(error)
        ):  # safetensors and other Rust: an OSError by another name
            raise OSError(f"{self.store}: {error}") from None
        reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(LeaseLost):
            lease.end("fail", reason=reason, traceback=traceback.format_exc())
            self.store.claim(lease.number).drop()
            self.outcome.failed |= dict.fromkeys(ids, reason)
