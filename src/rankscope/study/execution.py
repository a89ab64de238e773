"""Visits the store: trains what is missing, pack by pack, and records what fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankscope.study.folder import TrialFolder
from rankscope.study.plan import Trial, packs
from rankscope.study.store import Store

# Trains a pack into its folders and finishes each of them; calls back with the optimiser steps it took (summed
# over the pack's trials) as it goes.
TrainPack = Callable[[Sequence[Trial], Sequence[TrialFolder], Callable[[int], None]], None]


@dataclass
class Outcome:
    """What one visit did."""

    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def missing(store: Store | None, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have no result yet."""
    return [trial for trial in trials if store is None or not store.folder(trial.id).is_done]


def execute(
    store: Store,
    trials: Sequence[Trial],
    train_pack: TrainPack,
    *,
    pack_size: int,
    provenance: dict[str, Any],
    progress: Callable[[int], None] = lambda steps: None,
) -> Outcome:
    """Trains every trial that has no result. A pack that fails is recorded and does not stop the others.

    ``KeyboardInterrupt`` passes through: finished packs stay, the unfinished one is trained again next time.
    """
    outcome = Outcome()
    with store.writing():
        for pack in packs(missing(store, trials), size=pack_size):
            folders = [store.folder(trial.id) for trial in pack]
            for trial, folder in zip(pack, folders, strict=True):
                folder.begin(trial, provenance=provenance)
            try:
                train_pack(pack, folders, progress)
            except OSError:  # the store itself: no use in going on
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, it is recorded
                for trial, folder in zip(pack, folders, strict=True):
                    if not folder.is_done:
                        reason = f"{type(error).__name__}: {error}"
                        folder.fail(reason, trace=traceback.format_exc())
                        outcome.failed[trial.id] = reason
            outcome.trained += [
                trial.id for trial, folder in zip(pack, folders, strict=True) if folder.is_done
            ]
    return outcome
