"""The main job: a study -> its inputs, checked -> trials trained into a store -> the comparison of methods."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

import rankscope
from rankscope import lab
from rankscope.machine import environments, free_for_each, room, slots
from rankscope.progress import bar
from rankscope.study.cluster import run_on_ray
from rankscope.study.cost import Rows, Shape, base_memory, memory, widths
from rankscope.study.execution import Outcome, Worker
from rankscope.study.folder import TrialFolder
from rankscope.study.lease import pulse
from rankscope.study.plan import Study, Trial
from rankscope.study.processes import run_processes, worker_command
from rankscope.study.store import Store
from rankscope.study.tasks import task_named
from rankscope.train.data import Encoded, encode, read_split
from rankscope.train.data import fingerprint as data_fingerprint
from rankscope.train.model import fingerprint as model_fingerprint
from rankscope.train.model import largest_rank, load_tokenizer, shape_of, skeleton


def run(
    study: Study,
    store: str | Path,
    *,
    workers: int | None = 1,
    ray: str | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
    standing_by: Sequence[subprocess.Popen[str]] = (),
) -> Store:
    """Trains what the store lacks of this study, then compares LoRA with full fine-tuning. Safe to stop and call again.

    One worker trains in this process; several are processes of their own, and None starts as many as this machine
    trains fastest with. ``ray`` is the address of a Ray cluster ("auto": the one at hand) whose nodes see the store;
    the workers are its, by default one per GPU or core. Any number of calls, on any machines that see the store, share the work.

    Raises ``ValueError`` or ``OSError``, one line, before anything is written, when the study can't be run as it is.
    Failed trials are recorded in the store (``rankscope status``), tried again as often as the study says
    (``retry_failed``: and once more from the start), and do not stop the others. Workers ``standing_by`` are taken first.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected a number from 1; found {workers}")
    inputs = Inputs(study, workers=workers, quiet=quiet)
    steps = {trial.id: inputs.steps(trial) for trial in inputs.trials}
    opened = Store.create(store, study, largest_rank=inputs.largest_rank, fingerprints=inputs.fingerprints)
    opened.settle()
    if retry_failed:
        opened.ledger.forget([trial.id for trial in inputs.trials if trial.id in opened.ledger.failures])
    before = set(opened.done_ids())
    left = [pack for pack in inputs.packs(opened) if not before.issuperset(t.id for t in pack)]
    todo = steps.keys() - before
    what = f"training {len(todo)} of {len(steps)} trials"
    with bar(what, total=sum(steps[id] for id in todo), quiet=quiet) as advance:
        meter = Meter(opened, {id: steps[id] for id in todo}, advance)
        if ray is not None:
            run_on_ray(
                ray, visit, job_of(inputs, opened), workers=workers, most=len(left), tick=meter.read, say=_say
            )
        elif (count := min(workers or slots(), max(1, len(left)))) == 1:
            inputs.visit(opened, progress=advance)
        else:
            job, places = job_of(inputs, opened) | {"free": inputs.free}, environments(count)
            run_processes(worker_command(), job, places, tick=meter.read, say=_say, standing_by=standing_by)
    from rankscope.compare import compare  # brings scipy, which workers don't need

    if before != set(opened.done_ids()) or opened.comparison().empty:
        with bar("comparing LoRA with full fine-tuning", total=None, quiet=quiet) as advance:
            compare(opened, base_of=inputs.model_path, progress=advance)
    return opened


def job_of(inputs: Inputs, store: Store) -> dict[str, Any]:
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


def visit(job: Mapping[str, Any]) -> Outcome:
    """What every worker does, wherever it runs: trains what the store lacks and nobody else trains."""
    if "OMP_NUM_THREADS" in os.environ:  # torch has read it when it was imported
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    study = Study(**job["study"], source=job["text"], folder=Path(job["folder"]))
    inputs = Inputs(study, workers=job["workers"], free=job["free"] or free_for_each(slots()))
    ranks, prints = inputs.largest_rank, inputs.fingerprints
    return inputs.visit(Store.create(job["store"], study, largest_rank=ranks, fingerprints=prints))


class Meter:
    """Reads off a store how many optimiser steps have been taken, whoever took them."""

    def __init__(self, store: Store, steps: Mapping[str, int], advance: Callable[[float], None]) -> None:
        self.store, self.steps, self.advance = store, steps, advance
        self.length, self.taken = 0, 0

    def read(self) -> bool:
        """Advances the bar. -> whether anything has moved since the last time"""
        ledger = self.store.ledger
        ledger.refresh()
        finished = sum(steps for id, steps in self.steps.items() if id in ledger.done)
        taken = finished + sum(pulse(ledger, number)["steps"] for number in list(ledger.live))
        moved = (taken, ledger.length) != (self.taken, self.length)
        if taken > self.taken:  # less, when a worker has died with a part of its pack
            self.advance(taken - self.taken)
            self.taken = taken
        self.length = ledger.length
        return moved


def _say(line: str) -> None:
    print(f"rankscope: {line}", file=sys.stderr)


class Inputs:
    """Everything that a study needs, read and checked once: models, data, trials. Writes nothing.

    Args:
        workers: how many train; None: as many as train fastest here.
        free: bytes that one of them may count on; None: its part of what is free here now.
    """

    def __init__(
        self, study: Study, *, workers: int | None = None, free: float | None = None, quiet: bool = True
    ) -> None:
        self.study, self.workers, self._free = study, workers, free
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tasks = {name: task_named(name) for name in study.tasks}
        models = {name: self.model_path(name) for name in study.models}
        with bar("reading models and data", total=len(models) + len(self.tasks), quiet=quiet) as advance:
            self._skeletons, self._tokenizers = {}, {}
            for name, path in models.items():
                self._skeletons[name] = skeleton(path, next(iter(self.tasks.values())))
                self._tokenizers[name] = load_tokenizer(path)
                advance(1)
            self._splits = {}
            for name in self.tasks:
                self._splits[name] = (self._read(name, "train"), self._read(name, "validation"))
                advance(1)
        self._encoded: dict[tuple[str, str, int], tuple[Encoded, Encoded]] = {}
        self._shapes: dict[str, Shape] = {}

    @cached_property
    def largest_rank(self) -> dict[str, int]:
        """What "d" stands for, per model."""
        targets = self.study.fixed.target_modules
        return {name: largest_rank(model, targets) for name, model in self._skeletons.items()}

    @cached_property
    def trials(self) -> list[Trial]:
        return self.study.trials(self.largest_rank)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What tells these inputs from others under the same name (``Store.create``)."""
        data = {f"data/{name}": data_fingerprint(*splits) for name, splits in self._splits.items()}
        return data | {f"model/{name}": model_fingerprint(self.model_path(name)) for name in self._skeletons}

    def model_path(self, name: str) -> str:
        """What ``from_pretrained`` takes: "lab" is ours, a folder may be relative to the study file, else a hub id."""
        if name == "lab":
            return str(lab.ENCODER)
        local = self.study.folder / name
        if local.is_dir():
            return str(local)
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # no hub id looks like this
            raise ValueError(
                f"model {name!r}: expected a folder, or a hub id such as org/name; found no folder {local}"
            )
        return name

    @cached_property
    def free(self) -> float:
        """Bytes that a worker may count on."""
        return free_for_each(self.workers or slots()) if self._free is None else self._free

    def packs(self, store: Store) -> list[list[Trial]]:
        """The packs of a store's study that this worker has room for."""
        found = room(
            self.device.type, free=self.free, trials=len(self.trials), workers=self.workers or slots()
        )
        return store.packs(size=found.most, share=self.share(found.memory, self.device.type))

    def share(self, room: float, device: str) -> Callable[[Trial], float]:
        """What part of ``room`` bytes a trial takes on a device, beside the base that its pack shares."""
        known: dict[tuple[Any, ...], float] = {}

        def share(trial: Trial) -> float:
            key = (trial.model, trial.task, trial.method, trial.rank)
            if key not in known:
                held = (self.shape(trial), self.rows(trial), widths(trial, device))
                left = room - base_memory(trial, *held)
                known[key] = memory(trial, *held) / left if left > 0 else math.inf
            return known[key]

        return share

    def shape(self, trial: Trial) -> Shape:
        if trial.model not in self._shapes:
            self._shapes[trial.model] = shape_of(self._skeletons[trial.model], trial.target_modules)
        return self._shapes[trial.model]

    def rows(self, trial: Trial) -> Rows:
        train, validation = self.encoded(trial)
        return Rows(
            len(train), len(validation), float(train.lengths.double().mean()), int(train.lengths.max())
        )

    def steps(self, trial: Trial) -> int:
        return trial.total_steps(len(self._splits[trial.task][0]))

    def encoded(self, trial: Trial) -> tuple[Encoded, Encoded]:
        """The tokens of that trial's task for its model, made on first use."""
        key = (trial.model, trial.task, trial.max_length)
        if key not in self._encoded:
            train, validation = self._splits[trial.task]
            task, tokenizer = self.tasks[trial.task], self._tokenizers[trial.model]
            longest = (
                self._skeletons[trial.model].config.max_position_embeddings - 2
            )  # RoBERTa keeps two for padding
            length = min(trial.max_length, longest)
            self._encoded[key] = (
                encode(train, task, tokenizer, max_length=length),
                encode(validation, task, tokenizer, max_length=length),
            )
        return self._encoded[key]

    def visit(self, store: Store, *, progress: Callable[[int], None] = lambda steps: None) -> Outcome:
        """One worker's visit to the store."""
        worker = Worker(
            store,
            self.packs(store),
            self.train_pack,
            retries=self.study.fixed.retries,
            provenance=provenance(),
            progress=progress,
        )
        return worker.run()

    def train_pack(
        self,
        trials: Sequence[Trial],
        folders: Sequence[TrialFolder],
        progress: Callable[[int], None],
        *,
        scratch: Path,
    ) -> None:
        """What a worker calls for every pack."""
        from rankscope.train.loop import train_pack  # brings PEFT and scikit-learn, which plans don't need

        train, validation = self.encoded(trials[0])
        train_pack(
            trials,
            folders,
            progress,
            model=self.model_path(trials[0].model),
            task=self.tasks[trials[0].task],
            train=train,
            validation=validation,
            device=self.device,
            scratch=scratch,
        )

    def _read(self, name: str, split: str) -> pd.DataFrame:
        fixed = self.study.fixed
        rows = fixed.train_rows if split == "train" else fixed.validation_rows
        if fixed.data == "lab":
            from rankscope.lab.tasks import rows as lab_rows

            if name not in lab.TASKS:
                raise ValueError(
                    f'data = "lab": expected one of its tasks, {", ".join(lab.TASKS)}; found {name!r}'
                )
            return pd.DataFrame(lab_rows(name, split)[:rows])
        data = fixed.data if fixed.data == "hub" else str(self.study.folder / fixed.data)
        if data == "hub" and name in lab.TASKS:
            raise ValueError(f'task {name!r}: expected data = "lab" or a folder; found data = "hub"')
        return read_split(data, self.tasks[name], split, rows=rows)


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
