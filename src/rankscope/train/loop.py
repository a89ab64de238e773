"""Trains one pack and writes its trials' folders. Resumes from a checkpoint; splits the pack if
memory runs out."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankscope.store.trial_dir import TrialDir
from rankscope.study.tasks import Task
from rankscope.study.trial import Trial
from rankscope.train import checkpoint
from rankscope.train.adapters import AdapterPack
from rankscope.train.data import Encoded
from rankscope.train.full import FullPack
from rankscope.train.isolation import prove
from rankscope.train.one_at_a_time import PeftTrial
from rankscope.train.pack import Pack
from rankscope.train.packed import ONE_AT_A_TIME, NotIsolated
from rankscope.train.run import LOOK, Run, rows_of
from rankscope.train.without_diverged import without_diverged


@dataclass(frozen=True)
class Pace:
    """How often a pack writes a checkpoint, and looks for diverged trials."""

    # seconds between two checkpoints, at least; and the largest share of the time they may take
    every: float = 60.0
    share: float = 0.01
    # steps between two looks for diverged trials
    look: int = LOOK
    # seconds of training for which a stopped process still writes a checkpoint
    worth: float = 5.0


def train_pack(
    trials: Sequence[Trial],
    folders: Sequence[TrialDir],
    progress: Callable[[int], None],
    *,
    model: str,
    task: Task,
    train: Encoded,
    validation: Encoded,
    device: torch.device,
    scratch: Path | None = None,
    pace: Pace = Pace(),
    run: type[Run] = Run,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains a pack into its folders. Its trials share model, task, seed, batches and budget
    (``study.packs``).

    A trial whose loss or gradient is no longer finite is finished as "diverged" and dropped; the
    others go on. Where memory runs out, the pack is split and each half trained alone. Where
    ``isolation.prove`` fails, the trials train one at a time through PEFT's own layers; ``say``
    gets one line about it, and trial.json keeps the reason. ``progress`` is called after every
    optimiser step with K; its exceptions pass through. With ``scratch``, a local folder,
    checkpoints are written there, and training resumes from them.
    """
    counter, full = _StepCounter(progress), trials[0].method == "full"
    where: dict[str, Any] = {"model": model, "task": task, "device": device}

    def packed(left: Sequence[Trial]) -> Run:
        pack: Pack = FullPack(left, **where) if full else AdapterPack(left, **where)
        prove(pack, train, rows_of(left[0], train, 1)[0])
        return run(pack, task, train, validation)

    def stock(left: Sequence[Trial]) -> Run:
        pack: Pack = FullPack(left, **where, stock=True) if full else PeftTrial(left, **where)
        return run(pack, task, train, validation)

    try:
        _train(trials, folders, counter, packed, scratch, pace)
    except NotIsolated as error:
        say(f"{model}: {ONE_AT_A_TIME}: {error}")
        counter.steps = 0
        for folder in folders:
            folder.amend(one_at_a_time=str(error))
        _one_at_a_time(trials, folders, counter, stock, scratch, pace)


class _StepCounter:
    """Reports each step once, even if a pack starts again after a failure."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self.report = report
        self.steps = self.reported = 0

    def __call__(self, steps: int) -> None:
        self.steps += steps
        new = max(0, self.steps - self.reported)
        self.reported += new
        self.report(new)


def _train(
    trials: Sequence[Trial],
    folders: Sequence[TrialDir],
    counter: _StepCounter,
    begin: Callable[[Sequence[Trial]], Run],
    scratch: Path | None,
    pace: Pace,
) -> None:
    """Trains the whole pack; if memory runs out, one half after the other."""
    before = counter.steps
    try:
        place = (
            tempfile.TemporaryDirectory()
            if scratch is None
            else contextlib.nullcontext(str(scratch))
        )
        with place as folder:
            training = _Training(trials, begin, Path(folder), pace, keeps=scratch is not None)
            training.run_through(folders, counter)
        return
    except RuntimeError as error:
        if len(trials) == 1 or not _is_out_of_memory(error):
            raise
    if torch.cuda.is_available():  # here the exception, and with it the pack, is gone
        torch.cuda.empty_cache()
    half, counter.steps = len(trials) // 2, before
    for name, part in (("first", slice(None, half)), ("second", slice(half, None))):
        own = None if scratch is None else scratch / name
        _train(trials[part], folders[part], counter, begin, own, pace)


def _one_at_a_time(
    trials: Sequence[Trial],
    folders: Sequence[TrialDir],
    counter: _StepCounter,
    begin: Callable[[Sequence[Trial]], Run],
    scratch: Path | None,
    pace: Pace,
) -> None:
    """Trains each trial alone. Results wait in the scratch folder until all are there, so that a
    killed process loses none."""
    for trial, folder in zip(trials, folders, strict=True):
        if scratch is None:
            _train([trial], [folder], counter, begin, None, pace)
            continue
        result = TrialDir(scratch / trial.id / "result")
        if result.is_done:
            counter(result.result()["steps"])
        else:
            shutil.rmtree(result.path, ignore_errors=True)
            result.path.mkdir(parents=True)
            _train([trial], [result], counter, begin, scratch / trial.id, pace)
        shutil.copytree(result.path, folder.path, dirs_exist_ok=True)


class _Training:
    """Trains a pack from its checkpoint, if there is one, and drops trials as they diverge.

    Results of diverged trials wait in the scratch folder until the pack ends: a resumed pack finds
    them there, while the trials' own folders are emptied before it resumes.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        begin: Callable[[Sequence[Trial]], Run],
        scratch: Path,
        pace: Pace,
        *,
        keeps: bool,
    ) -> None:
        self.pace = pace
        self.ids, self.scratch, self.keeps = [trial.id for trial in trials], scratch, keeps
        self.started = time.perf_counter()
        self.seconds = 0.0  # each trial's share of the time before `started`
        self.diverged = {id: TrialDir(scratch / "diverged" / id) for id in self.ids}
        kept = checkpoint.read(scratch, trials=self.ids)
        if kept is not None and any(
            id not in kept[1]["training"] and not self.diverged[id].is_done for id in self.ids
        ):
            kept = None
        self.run = begin(
            [trial for trial in trials if kept is None or trial.id in kept[1]["training"]]
        )
        if kept is not None:
            self.run.restore(*kept)
            self.seconds = kept[1]["seconds"]

    def run_through(self, folders: Sequence[TrialDir], progress: Callable[[int], None]) -> None:
        if self.run.done:
            progress(self.run.done * len(self.ids))
        last = time.perf_counter()
        due = last + self.pace.every
        while self.run.done < self.run.total:
            for _ in self.run.steps():
                before = time.perf_counter()
                if self.keeps and before > due:
                    self.write_checkpoint()
                    due = time.perf_counter() + max(
                        self.pace.every, (time.perf_counter() - before) / self.pace.share
                    )
                    last = time.perf_counter()
                try:
                    progress(len(self.ids))
                except KeyboardInterrupt:  # between two steps: the state is whole
                    if self.keeps and time.perf_counter() - last > self.pace.worth:
                        self.write_checkpoint()
                    raise
                if self.run.done % self.pace.look == 0 and self.has_diverged:
                    break
            if self.run.done < self.run.total:
                self.drop_diverged()
        self.finish(folders)

    def write_checkpoint(self) -> None:
        tensors, state = self.run.state()
        more = {"trials": self.ids, "training": state["trials"], "seconds": self.seconds_so_far()}
        checkpoint.write(self.scratch, tensors, state | more)

    def seconds_so_far(self) -> float:
        """The wall time of the pack, divided by its trials."""
        return self.seconds + (time.perf_counter() - self.started) / self.run.K

    @property
    def has_diverged(self) -> bool:
        """Whether some trials have diverged, and not all."""
        return bool(self.run.alive.any() & ~self.run.alive.all())

    def drop_diverged(self) -> None:
        """Finishes the diverged trials and goes on without them."""
        self.seconds, self.started = self.seconds_so_far(), time.perf_counter()
        for k in (~self.run.alive).nonzero().flatten().tolist():
            folder = self.diverged[self.run.pack.trials[k].id]
            shutil.rmtree(folder.path, ignore_errors=True)
            folder.path.mkdir(parents=True)
            self.run.finish(k, folder, seconds=self.seconds)
        self.run = without_diverged(self.run)  # another K, other buckets of ranks: proved again
        prove(self.run.pack, self.run.train, rows_of(self.run.pack.trials[0], self.run.train, 1)[0])

    def finish(self, folders: Sequence[TrialDir]) -> None:
        places, seconds = (
            {t.id: k for k, t in enumerate(self.run.pack.trials)},
            self.seconds_so_far(),
        )
        for id, folder in zip(self.ids, folders, strict=True):
            if id in places:
                self.run.finish(places[id], folder, seconds=seconds)
            else:
                shutil.copytree(self.diverged[id].path, folder.path, dirs_exist_ok=True)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
