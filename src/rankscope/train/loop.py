"""Trains one pack into its folders: from a checkpoint where there is one, in halves where memory is
short."""

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
    """How often a pack is kept in a checkpoint, and looked through for diverged trials."""

    every: float = 60.0  # seconds between two checkpoints, at least,
    share: float = 0.01  # and no more than this part of the time goes into them
    look: int = LOOK  # steps
    worth: float = (
        5.0  # seconds of training that a checkpoint pays for when the process is asked to stop
    )


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

    A trial whose loss or gradient is no longer finite is frozen, finished as "diverged" and
    dropped; the others go on. Where memory does not do, the pack is split and each half trained
    alone. Where ``isolation.prove`` fails, the trials train one at a time through PEFT's own
    layers, which ``say`` is told and trial.json keeps. ``progress`` is told of every optimiser
    step, times K; what it raises passes. With ``scratch``, a local folder, a checkpoint is kept
    there, and training goes on from it.
    """
    taken, full = _Taken(progress), trials[0].method == "full"
    where: dict[str, Any] = {"model": model, "task": task, "device": device}

    def packed(left: Sequence[Trial]) -> Run:
        pack: Pack = FullPack(left, **where) if full else AdapterPack(left, **where)
        prove(pack, train, rows_of(left[0], train, 1)[0])
        return run(pack, task, train, validation)

    def stock(left: Sequence[Trial]) -> Run:
        pack: Pack = FullPack(left, **where, stock=True) if full else PeftTrial(left, **where)
        return run(pack, task, train, validation)

    try:
        _train(trials, folders, taken, packed, scratch, pace)
    except NotIsolated as error:
        say(f"{model}: {ONE_AT_A_TIME}: {error}")
        taken.steps = 0
        for folder in folders:
            folder.amend(one_at_a_time=str(error))
        _one_at_a_time(trials, folders, taken, stock, scratch, pace)


class _Taken:
    """Reports steps, but not those that are taken for the second time."""

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
    taken: _Taken,
    begin: Callable[[Sequence[Trial]], Run],
    scratch: Path | None,
    pace: Pace,
) -> None:
    """The pack as a whole, or where memory does not do in halves."""
    before = taken.steps
    try:
        place = (
            tempfile.TemporaryDirectory()
            if scratch is None
            else contextlib.nullcontext(str(scratch))
        )
        with place as folder:
            training = _Training(trials, begin, Path(folder), pace, keeps=scratch is not None)
            training.run_through(folders, taken)
        return
    except RuntimeError as error:
        if len(trials) == 1 or not _is_out_of_memory(error):
            raise
    if torch.cuda.is_available():  # here the exception, and with it the pack, is gone
        torch.cuda.empty_cache()
    half, taken.steps = len(trials) // 2, before
    for name, part in (("first", slice(None, half)), ("second", slice(half, None))):
        own = None if scratch is None else scratch / name
        _train(trials[part], folders[part], taken, begin, own, pace)


def _one_at_a_time(
    trials: Sequence[Trial],
    folders: Sequence[TrialDir],
    taken: _Taken,
    begin: Callable[[Sequence[Trial]], Run],
    scratch: Path | None,
    pace: Pace,
) -> None:
    """Results wait in the scratch, so that a kill loses none of them."""
    for trial, folder in zip(trials, folders, strict=True):
        if scratch is None:
            _train([trial], [folder], taken, begin, None, pace)
            continue
        result = TrialDir(scratch / trial.id / "result")
        if result.is_done:
            taken(result.result()["steps"])
        else:
            shutil.rmtree(result.path, ignore_errors=True)
            result.path.mkdir(parents=True)
            _train([trial], [result], taken, begin, scratch / trial.id, pace)
        shutil.copytree(result.path, folder.path, dirs_exist_ok=True)


class _Training:
    """A pack, from its checkpoint if there is one; the dead leave it on the way.

    Their results wait in the scratch: who goes on after a kill finds them there, while the
    trials' folders are empty then.
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
        self.started, self.seconds = (
            time.perf_counter(),
            0.0,
        )  # a trial's part of the time before that
        self.dead = {id: TrialDir(scratch / "diverged" / id) for id in self.ids}
        kept = checkpoint.read(scratch, trials=self.ids)
        if kept is not None and any(
            id not in kept[1]["living"] and not self.dead[id].is_done for id in self.ids
        ):
            kept = None
        self.run = begin(
            [trial for trial in trials if kept is None or trial.id in kept[1]["living"]]
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
                    self.keep()
                    due = time.perf_counter() + max(
                        self.pace.every, (time.perf_counter() - before) / self.pace.share
                    )
                    last = time.perf_counter()
                try:
                    progress(len(self.ids))
                except (
                    KeyboardInterrupt
                ):  # between two steps: what was trained since need not be lost
                    if self.keeps and time.perf_counter() - last > self.pace.worth:
                        self.keep()
                    raise
                if self.run.done % self.pace.look == 0 and self.has_dead:
                    break
            if self.run.done < self.run.total:
                self.part()
        self.finish(folders)

    def keep(self) -> None:
        tensors, state = self.run.state()
        more = {"trials": self.ids, "living": state["trials"], "seconds": self.seconds_so_far()}
        checkpoint.write(self.scratch, tensors, state | more)

    def seconds_so_far(self) -> float:
        """The wall time of the pack, divided by its trials."""
        return self.seconds + (time.perf_counter() - self.started) / self.run.K

    @property
    def has_dead(self) -> bool:
        """And living ones beside them."""
        return bool(self.run.alive.any() & ~self.run.alive.all())

    def part(self) -> None:
        """Finishes the dead and goes on without them."""
        self.seconds, self.started = self.seconds_so_far(), time.perf_counter()
        for k in (~self.run.alive).nonzero().flatten().tolist():
            folder = self.dead[self.run.pack.trials[k].id]
            shutil.rmtree(folder.path, ignore_errors=True)
            folder.path.mkdir(parents=True)
            self.run.finish(k, folder, seconds=self.seconds)
        self.run = without_diverged(self.run)

    def finish(self, folders: Sequence[TrialDir]) -> None:
        places, seconds = (
            {t.id: k for k, t in enumerate(self.run.pack.trials)},
            self.seconds_so_far(),
        )
        for id, folder in zip(self.ids, folders, strict=True):
            if id in places:
                self.run.finish(places[id], folder, seconds=seconds)
            else:
                shutil.copytree(self.dead[id].path, folder.path, dirs_exist_ok=True)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
