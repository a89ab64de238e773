"""The loop that every worker runs, wherever it runs: claim a pack, train it, commit it."""

from __future__ import annotations

import contextlib
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rankscope.store.lease import Lease, LeaseLost, Presence, Watch, beat, forget, is_gone
from rankscope.store.log import Ledger
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialFolder
from rankscope.study.study_file import Trial

DEATHS = 20  # a pack whose workers die this often kills them (out of memory, most likely): it failed
POLL = 0.5  # seconds between two looks for work, when others hold all there is


class TrainPack(Protocol):
    """Trains a pack into its folders (empty but for trial.json) and finishes each of them.

    Calls ``progress`` after every optimiser step with the steps it took, summed over the pack's trials; lets
    what that raises pass. ``scratch`` is a local folder of the pack: what is written there (and replaced by renaming) is there again when
    another worker goes on after this one's death; the trials' folders then are empty again.
    """

    def __call__(
        self,
        trials: Sequence[Trial],
        folders: Sequence[TrialFolder],
        progress: Callable[[int], None],
        *,
        scratch: Path,
    ) -> None: ...


@dataclass
class Outcome:
    """What one worker did."""

    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def missing(store: Store | None, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have no result yet."""
    done = set() if store is None else set(store.done_ids())
    return [trial for trial in trials if trial.id not in done]


def given_up(ledger: Ledger, trial: str, *, retries: int) -> str | None:
    """Why that trial is not tried again, or None."""
    failures = ledger.failures.get(trial, [])
    if len(failures) > retries:
        return failures[-1].reason
    if ledger.deaths[trial] >= DEATHS:
        return f"{DEATHS} workers died while they trained it (out of memory?)"
    return None


class Worker:
    """Visits a store until every trial of ``packs`` is done or given up, by itself or by others.

    ``KeyboardInterrupt`` and ``OSError`` (the store itself: no use in going on) end the visit: the claim is released, and
    whatever was committed stays.
    """

    def __init__(
        self,
        store: Store,
        packs: Sequence[Sequence[Trial]],
        train_pack: TrainPack,
        *,
        retries: int,
        provenance: dict[str, Any],
        progress: Callable[[int], None] = lambda steps: None,
    ) -> None:
        self.store, self.ledger, self.train_pack = store, store.ledger, train_pack
        self.retries, self.provenance, self.progress = retries, provenance, progress
        self.packs = [{trial.id: trial for trial in pack} for pack in packs]
        self.watch = Watch(self.ledger)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        self.store.settle()
        self.presence = Presence()
        try:
            while True:
                self._revoke_the_dead()
                claimed = self._claim()
                if claimed:
                    self._train(*claimed)
                elif any(self._left()):  # held by others, who may yet die
                    time.sleep(POLL)
                else:
                    self.store.tidy()
                    return self.outcome
        finally:
            said = False
            try:
                said = self._let_go()
            finally:
                self.presence.leave(holding=not said)

    def _let_go(self) -> bool:
        """Releases what this worker still holds, if anything. -> whether that could be said"""
        with contextlib.suppress(OSError):
            self.ledger.refresh()  # a claim may be there although writing it was interrupted
            for claim in list(self.ledger.live.values()):
                if claim.worker == self.presence.worker:
                    self.ledger.end(claim.number, "release")
            return True
        return False  # others will find out

    def _left(self) -> Iterator[list[str]]:
        """The ids that still want training, pack by pack. What has failed before is tried alone."""
        for pack in self.packs:
            left = [id for id in pack if id not in self.ledger.done]
            left = [id for id in left if given_up(self.ledger, id, retries=self.retries) is None]
            fresh = [id for id in left if id not in self.ledger.failures]
            if fresh:
                yield fresh
            yield from ([id] for id in left if id in self.ledger.failures)

    def _claim(self) -> tuple[Lease, list[Trial]] | None:
        """The first pack that nobody holds; else what is free of one: workers with less memory hold parts of it."""
        trials = {id: trial for pack in self.packs for id, trial in pack.items()}
        for whole in (True, False):
            for ids in self._left():
                free = [id for id in ids if not self.ledger.holder(id)]
                if not free or (whole and free != ids):
                    continue
                who = self.presence
                number = self.ledger.claim(free, worker=who.worker, host=who.host, boot=who.boot)
                if number is not None:
                    return Lease(self.ledger, number), [trials[id] for id in free]
        return None

    def _revoke_the_dead(self) -> None:
        self.ledger.refresh()
        for claim in list(self.ledger.live.values()):
            if claim.worker != self.presence.worker and self.watch.is_dead(claim):
                self.ledger.end(claim.number, "revoke", by=self.presence.worker)
                self.store.shelf.remove(beat(claim.number))
                if is_gone(claim):
                    forget(claim.worker)

    def _train(self, lease: Lease, pack: list[Trial]) -> None:
        ids = [trial.id for trial in pack]

        def progress(steps: int) -> None:
            lease.progress(steps)
            self.progress(steps)

        with self.store.workspace(lease.number, ids) as work:
            folders = [TrialFolder(work / "trials" / id) for id in ids]
            try:
                with lease.beating(lambda: self.store.keep_scratch(lease.number)):
                    for trial, folder in zip(pack, folders, strict=True):
                        folder.begin(trial, provenance=self.provenance)
                    self.train_pack(pack, folders, progress, scratch=work / "scratch")
                    assert all(folder.is_done for folder in folders), "training ended without a result"
                    self.store.keep(lease.number)
                    lease.end("commit", results={folder.path.name: folder.result() for folder in folders})
            except LeaseLost:
                return
            except Exception as error:  # noqa: BLE001 - whatever it was, it is recorded
                self._failed(lease, ids, error)
            else:
                self.store.settle(lease.number)
                self.outcome.trained += ids

    def _failed(self, lease: Lease, ids: list[str], error: Exception) -> None:
        """Records it and goes on; but where the store itself is the trouble, going on is no use."""
        self.ledger.refresh()
        if lease.number not in self.ledger.live:  # whatever it was, the trials are another worker's now
            return
        if isinstance(error, OSError):
            raise error
        if re.search(
            r"\(os error \d+\)", str(error)
        ):  # safetensors and other Rust: an OSError by another name
            raise OSError(f"{self.store}: {error}") from None
        reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(LeaseLost):
            lease.end("fail", reason=reason, traceback=traceback.format_exc())
            self.store.discard(lease.number)
            self.outcome.failed |= dict.fromkeys(ids, reason)
