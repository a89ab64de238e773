"""A store's progress: done, diverged, running, failed and why, and the time left."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from rankscope.console import duration, visible
from rankscope.store import interventions
from rankscope.store.files import read_json
from rankscope.store.lease import is_gone, last_heartbeat
from rankscope.store.store import Store
from rankscope.store.trial_dir import TRIAL, unlike_versions
from rankscope.study.settings import compared
from rankscope.study.trial import Trial
from rankscope.sweep.worker import given_up

_NAMED = 5  # damaged trials that are listed


@dataclass(frozen=True)
class Running:
    """A pack in training, or one whose worker has died."""

    trials: int
    host: str
    steps: int  # steps since this worker claimed the pack, summed over its trials
    interrupted: bool  # known only of workers on this machine


@dataclass(frozen=True)
class Status:
    """The study's trials by outcome."""

    store: str
    planned: int
    done: int
    diverged: int  # among the done: the loss became NaN or infinite, which is a result
    failed: dict[str, str]  # trial id -> reason; not tried again
    left_out: dict[str, str]  # trial id -> why its files no longer count; to be trained again
    notes: list[str]  # damage that only slows readers down; versions that trained some trials each
    failed_once: int  # will be tried again
    packs: list[Running]
    seconds_left: float | None
    remedy: str  # what to type for those
    settings: list[str] = field(default_factory=list)  # that are compared, in one line
    edited: int = 0  # finished trials that rankscope intervene has tables of
    # tables of theirs that are missing or harmed
    edits_left_out: list[interventions.Fault] = field(default_factory=list)

    @property
    def running(self) -> int:
        return sum(pack.trials for pack in self.packs if not pack.interrupted)

    def line(self) -> str:
        diverged = f" ({self.diverged} of them diverged)" if self.diverged else ""
        failed = (
            f", {len(self.failed)} failed (rankscope status {self.store} says why)"
            if self.failed
            else ""
        )
        harmed = f", {len(self.left_out)} harmed" if self.left_out else ""
        return f"{self.done} of {self.planned} trials done{diverged}{failed}{harmed}"

    @property
    def is_harmed(self) -> bool:
        """Whether something must be trained, or edited, again."""
        return bool(self.left_out) or not all(fault.is_closed for fault in self.edits_left_out)

    @property
    def is_complete(self) -> bool:
        """Whether every trial of the study has a result."""
        return self.done == self.planned and not self.left_out

    def text(self) -> str:
        """What ``rankscope status`` prints."""
        lines = [self.line(), *self.settings]
        for host, count in Counter(
            pack.host for pack in self.packs if not pack.interrupted
        ).items():
            trials = sum(
                pack.trials for pack in self.packs if pack.host == host and not pack.interrupted
            )
            lines.append(f"running: {trials} trials in {count} pack{'s' * (count > 1)} on {host}")
        stopped = sum(pack.trials for pack in self.packs if pack.interrupted)
        if stopped:
            lines.append(f"interrupted: {stopped} trials; rankscope run continues them")
        if self.failed_once:
            lines.append(f"failed and to be tried again: {self.failed_once}")
        for reason, count in Counter(self.failed.values()).most_common():
            example = next(trial for trial, why in self.failed.items() if why == reason)
            lines.append(
                f"failed, {count} trial{'s' * (count > 1)}: {reason}  [{example}; traceback in "
                f"{self.store}/log]"
            )
        if self.failed:
            lines.append("rankscope run STUDY --store DIR --retry-failed tries them once more")
        lines += [
            f"harmed: trial {trial}: {why}" for trial, why in list(self.left_out.items())[:_NAMED]
        ]
        if len(self.left_out) > _NAMED:
            lines.append(f"harmed: {len(self.left_out) - _NAMED} more")
        if self.left_out:
            lines.append(f"mend them with: {self.remedy}")
        lines += self.notes
        if self.edits_left_out:
            lines.append(interventions.left_out(self.store, self.edits_left_out))
        if self.seconds_left is not None and self.done < self.planned:
            lines.append(f"about {duration(self.seconds_left)} left, at the rate so far")
        if self.edited:
            lines.append(f"{self.edited} of {self.done} finished trials edited and evaluated again")
        return "\n".join(map(visible, lines))


def status(store: Store) -> Status:
    """Reads the store as it is now; others may be writing it."""
    found, log, planned = store.inspect(), store.log, store.planned()
    results = store.results(found.whole)
    done = [trial for trial in planned if trial.id in results]
    missing = [trial for trial in planned if trial.id not in results]
    retries = store.study.fixed.retries
    failed = {
        t.id: why for t in missing if (why := given_up(log, t.id, retries=retries)) is not None
    }
    faults = interventions.faults(store, glance=True)
    edited = interventions.trials(store, without=faults)
    seconds = defaultdict(list)
    for trial in done:
        if (took := results[trial.id]["seconds"]) is not None:
            seconds[trial.task, trial.method].append(took)
    means = {kind: fmean(values) for kind, values in seconds.items()}
    overall = fmean(itertools.chain(*seconds.values())) if seconds else 0.0
    left = [means.get((t.task, t.method), overall) for t in missing if t.id not in failed]
    packs = [
        Running(
            len(claim.trials),
            claim.host,
            last_heartbeat(log, claim.number)["steps"],
            bool(is_gone(claim)),
        )
        for claim in list(log.live.values())
    ]
    workers = max(1, sum(not pack.interrupted for pack in packs))
    return Status(
        store=str(store),
        planned=len(planned),
        done=len(done),
        diverged=sum(results[trial.id]["status"] == "diverged" for trial in done),
        failed=failed,
        left_out=found.left_out,
        remedy=store.remedy,
        notes=[*_notes(store), *filter(None, [_versions(store, found.whole)])],
        failed_once=sum(t.id in log.failures and t.id not in failed for t in missing),
        packs=packs,
        seconds_left=sum(left) / workers if done else None,
        settings=compared(planned, results),
        edited=len(edited & {trial.id for trial in done}),
        edits_left_out=faults,
    )


def _versions(store: Store, whole: Iterable[str]) -> str | None:
    """``unlike_versions`` of these trials. Those of a pack were trained by one process."""
    one_of = {store.log.done[trial].claim: trial for trial in whole}
    said = []
    for trial in one_of.values():
        with contextlib.suppress(OSError, ValueError):  # which others report
            said.append(read_json(store.folder(trial).path / TRIAL))
    return unlike_versions(said)


def _notes(store: Store) -> list[str]:
    """Damage that no result depends on."""
    notes = [] if store.header_fault is None else [f"{store.header_fault}; its copy was read"]
    if store.log.lost:
        first = next(iter(store.log.lost.values()))
        notes.append(f"{len(store.log.lost)} of the log's entries are lost, the first: {first}")
    notes += [f"rankscope check {store} --repair"] if notes else []
    return notes


class Meter:
    """Reads the progress of these trials from the store, whichever worker trains them: optimiser
    steps, weighted by their trial's cost, since tasks, ranks and full fine-tunes differ in
    speed."""

    def __init__(
        self,
        store: Store,
        steps: Mapping[str, int],
        costs: Mapping[str, float],
        advance: Callable[[float], None],
    ) -> None:
        self.store, self.steps, self.costs, self.advance = store, steps, costs, advance
        self.length, self.taken = 0, 0.0

    def read(self) -> bool:
        """Advances the bar. -> whether there was any progress since the last call"""
        log = self.store.log
        log.refresh()
        taken = sum(steps * self.costs[id] for id, steps in self.steps.items() if id in log.done)
        for number, claim in list(log.live.items()):
            known = [id for id in claim.trials if id in self.costs]
            if known:  # trials of the current study only
                taken += last_heartbeat(log, number)["steps"] * mean(known, self.costs)
        moved = (taken, log.length) != (self.taken, self.length)
        if taken > self.taken:  # smaller if a worker died with part of its pack
            self.advance(taken - self.taken)
            self.taken = taken
        self.length = log.length
        return moved


def mean(pack: Iterable[Trial] | Iterable[str], costs: Mapping[str, float]) -> float:
    """The cost of one step of a pack's trial, on average over these trials or ids."""
    return fmean(costs[t if isinstance(t, str) else t.id] for t in pack)
