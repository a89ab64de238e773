"""A study's progress in units of cost: tasks, ranks and full fine-tunes differ in speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

from rankscope.store.lease import last_heartbeat
from rankscope.store.store import Store
from rankscope.study.trial import Trial


class Meter:
    """Reads the progress of these trials from the store, whoever trains them: optimiser steps,
    weighted by their trial's cost."""

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
