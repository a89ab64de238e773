"""Trains one pack into its folders: from a checkpoint where there is one, in halves where memory is short."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rankscope.study.folder import TrialFolder
from rankscope.study.plan import Trial
from rankscope.study.tasks import Task
from rankscope.train import checkpoint
from rankscope.train.adapters import AdapterPack
from rankscope.train.data import Encoded
from rankscope.train.full import FullPack
from rankscope.train.run import Run

_EVERY = 60.0  # seconds between two checkpoints, at least,
_SHARE = 0.01  # and no more than this part of the time goes into them


def train_pack(
    trials: Sequence[Trial],
    folders: Sequence[TrialFolder],
    progress: Callable[[int], None],
    *,
    model: str,
    task: Task,
    train: Encoded,
    validation: Encoded,
    device: torch.device,
    scratch: Path | None = None,
) -> None:
    """Trains a pack into its folders. Its trials share model, task, seed, batches and budget (``study.packs``).

    A trial whose loss or gradient is no longer finite is frozen and finished as "diverged"; the others go on. Where memory
    does not do, the pack is split and each half trained alone. ``progress`` is told of every optimiser step, times K; what
    it raises passes. With ``scratch``, a local folder, a checkpoint is kept there, and training goes on from it.
    """
    told = 0

    def tell(steps: int) -> None:
        nonlocal told
        told += steps
        progress(steps)

    def tell_again(steps: int) -> None:  # a split pack takes some steps for the second time
        nonlocal told
        again = min(steps, told)
        told -= again
        progress(steps - again)

    inputs = {"model": model, "task": task, "train": train, "validation": validation, "device": device}
    try:
        _train(trials, folders, tell, scratch=scratch, **inputs)  # type: ignore[arg-type]
        return
    except RuntimeError as error:
        if len(trials) == 1 or not _is_out_of_memory(error):
            raise
    if device.type == "cuda":  # here the exception, and with it the pack, is gone
        torch.cuda.empty_cache()
    half = len(trials) // 2
    for name, part in (("first", slice(None, half)), ("second", slice(half, None))):
        own = None if scratch is None else scratch / name
        train_pack(trials[part], folders[part], tell_again, scratch=own, **inputs)  # type: ignore[arg-type]


def _train(
    trials: Sequence[Trial],
    folders: Sequence[TrialFolder],
    progress: Callable[[int], None],
    *,
    model: str,
    task: Task,
    train: Encoded,
    validation: Encoded,
    device: torch.device,
    scratch: Path | None,
) -> None:
    started = time.perf_counter()
    kind = FullPack if trials[0].method == "full" else AdapterPack
    run = Run(kind(trials, model=model, task=task, device=device), task, train, validation)
    if scratch is not None and (kept := checkpoint.read(scratch, trials=[trial.id for trial in trials])):
        run.restore(*kept)
        started -= kept[1]["seconds"]
        progress(run.done * len(trials))
    due = time.perf_counter() + _EVERY
    for _ in run.steps():
        if scratch is not None and time.perf_counter() > due:
            before = time.perf_counter()
            tensors, state = run.state()
            checkpoint.write(scratch, tensors, state | {"seconds": before - started})
            due = time.perf_counter() + max(_EVERY, (time.perf_counter() - before) / _SHARE)
        progress(len(trials))
    run.finish(folders, seconds=(time.perf_counter() - started) / len(trials))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
