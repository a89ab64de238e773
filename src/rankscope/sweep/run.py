"""The main job: a study -> its inputs, checked -> trials trained into a store -> the comparison of methods."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import rankscope
from rankscope.console import bar
from rankscope.store.lease import last_heartbeat
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.study_file import Study, Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.machine import environments, free_for_each, slots
from rankscope.sweep.processes import run_processes, worker_command
from rankscope.sweep.ray import run_on_ray
from rankscope.sweep.worker import Outcome, TrainPack, Worker


def run(
    study: Study,
    store: str | Path,
    *,
    workers: int | None = 1,
    ray: str | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
    prestarted: Sequence[subprocess.Popen[str]] = (),
) -> Store:
    """Trains what the store lacks of this study, then compares LoRA with full fine-tuning. Safe to stop and call again.

    One worker trains in this process; several are processes of their own, and None starts as many as this machine
    trains fastest with. ``ray`` is the address of a Ray cluster ("auto": the one at hand) whose nodes see the store;
    the workers are its, by default one per GPU or core. Any number of calls, on any machines that see the store, share the work.

    Raises ``ValueError`` or ``OSError``, one line, before anything is written, when the study can't be run as it is.
    Failed trials are recorded in the store (``rankscope status``), tried again as often as the study says
    (``retry_failed``: and once more from the start), and do not stop the others. Workers ``prestarted`` are taken first.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected a number from 1; found {workers}")
    inputs = StudyInputs(study, workers=workers, quiet=quiet)
    steps = {trial.id: inputs.steps(trial) for trial in inputs.trials}
    opened = Store.create(store, study, largest_rank=inputs.largest_rank, fingerprints=inputs.fingerprints)
    opened.recover()
    if retry_failed:
        opened.log.forget([trial.id for trial in inputs.trials if trial.id in opened.log.failures])
    before = set(opened.done_ids())
    left = [pack for pack in inputs.packs(opened) if not before.issuperset(t.id for t in pack)]
    todo = steps.keys() - before
    what = f"training {len(todo)} of {len(steps)} trials"
    with bar(what, total=sum(steps[id] for id in todo), quiet=quiet) as advance:
        meter = Meter(opened, {id: steps[id] for id in todo}, advance)
        if ray is not None:
            run_on_ray(
                ray,
                visit,
                worker_job(inputs, opened),
                workers=workers,
                most=len(left),
                tick=meter.read,
                say=_say,
            )
        elif (count := min(workers or slots(), max(1, len(left)))) == 1:
            train(inputs, opened, progress=advance)
        else:
            job, places = worker_job(inputs, opened) | {"free": inputs.free}, environments(count)
            run_processes(worker_command(), job, places, tick=meter.read, say=_say, prestarted=prestarted)
    from rankscope.sweep.compare import compare  # brings scipy, which workers don't need

    if before != set(opened.done_ids()) or opened.comparison().empty:
        with bar("comparing LoRA with full fine-tuning", total=None, quiet=quiet) as advance:
            compare(opened, base_of=inputs.model_path, progress=advance)
    return opened


def worker_job(inputs: StudyInputs, store: Store) -> dict[str, Any]:
    """What ``visit`` needs to know, as JSON."""
    study = inputs.study
    return {
        "study": study.model_dump(mode="json"),
        "text": study.source,
        "folder": str(study.folder.resolve()),
        "store": str(store) if "://" in str(store) else str(Path(str(store)).resolve()),
        "workers": inputs.workers,
        "free": None,  # each finds out where it is
    }


def prepare() -> None:
    """Imports what a visit needs, so that it has it when it begins."""
    import rankscope.train.loop  # noqa: F401


def visit(job: Mapping[str, Any], **settings: Any) -> Outcome:
    """What every worker does, wherever it runs: trains what the store lacks and nobody else trains.

    ``settings`` are further ones of ``train.loop.train_pack``.
    """
    if "OMP_NUM_THREADS" in os.environ:  # torch has read it when it was imported
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    study = Study(**job["study"], source=job["text"], folder=Path(job["folder"]))
    inputs = StudyInputs(study, workers=job["workers"], free=job["free"] or free_for_each(slots()))
    ranks, prints = inputs.largest_rank, inputs.fingerprints
    opened = Store.create(job["store"], study, largest_rank=ranks, fingerprints=prints)
    return train(inputs, opened, **settings)


class Meter:
    """Reads off a store how many optimiser steps have been taken, whoever took them."""

    def __init__(self, store: Store, steps: Mapping[str, int], advance: Callable[[float], None]) -> None:
        self.store, self.steps, self.advance = store, steps, advance
        self.length, self.taken = 0, 0

    def read(self) -> bool:
        """Advances the bar. -> whether anything has moved since the last time"""
        log = self.store.log
        log.refresh()
        finished = sum(steps for id, steps in self.steps.items() if id in log.done)
        taken = finished + sum(last_heartbeat(log, number)["steps"] for number in list(log.live))
        moved = (taken, log.length) != (self.taken, self.length)
        if taken > self.taken:  # less, when a worker has died with a part of its pack
            self.advance(taken - self.taken)
            self.taken = taken
        self.length = log.length
        return moved


def _say(line: str) -> None:
    print(f"rankscope: {line}", file=sys.stderr)


def train(
    inputs: StudyInputs,
    store: Store,
    *,
    progress: Callable[[int], None] = lambda steps: None,
    **settings: Any,
) -> Outcome:
    """One worker's visit to the store."""
    worker = Worker(
        store,
        inputs.packs(store),
        trainer(inputs, **settings),
        retries=inputs.study.fixed.retries,
        provenance=provenance(),
        progress=progress,
    )
    return worker.run()


def trainer(inputs: StudyInputs, **settings: Any) -> TrainPack:
    """What a worker calls for every pack: ``train.loop.train_pack``, with further ``settings`` of it."""

    def train_pack(
        trials: Sequence[Trial],
        folders: Sequence[TrialDir],
        progress: Callable[[int], None],
        *,
        scratch: Path,
    ) -> None:
        from rankscope.train import loop  # brings PEFT and scikit-learn, which plans don't need

        rows, validation = inputs.encoded(trials[0])
        loop.train_pack(
            trials,
            folders,
            progress,
            model=inputs.model_path(trials[0].model),
            task=inputs.tasks[trials[0].task],
            train=rows,
            validation=validation,
            device=inputs.device,
            scratch=scratch,
            **settings,
        )

    return train_pack


def provenance() -> dict[str, Any]:
    """Versions and machine, as trial.json keeps them."""
    import peft  # slow to import, and only its version is wanted

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {
            "rankscope": rankscope.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads(), "gpu": gpu},
    }
