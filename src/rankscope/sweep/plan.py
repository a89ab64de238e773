"""What a study will take: trials, packs, operations, memory, time. Before anything is trained."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from rankscope.console import duration
from rankscope.store.store import Store
from rankscope.study.cost import (
    Device,
    Rows,
    Shape,
    base_memory,
    device_named,
    forward_operations,
    memory,
    operations,
    widths,
)
from rankscope.study.packing import packs
from rankscope.study.trial import Trial
from rankscope.sweep.design import design_lines
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.machine import Room, default_workers, room
from rankscope.sweep.worker import missing

# of the matrix-product rate that training reaches; measured on the lab study (docs/log.md)
_SHARE = 0.35
_SHARE_OF_PEAK = (
    0.25  # of a GPU's data sheet: an assumption, until a store holds trials of such a GPU
)
_STEP_OF_A_BLOCK = (
    2e-3  # seconds that a GPU takes at least, for starting some hundred kernels; assumed
)
_LAUNCHES = f"{1e3 * _STEP_OF_A_BLOCK:g} ms a block and step"
_SAMPLE = 200  # finished trials that a measured rate is taken from


def forecast(
    inputs: StudyInputs,
    store: str | Path | None,
    *,
    gpus: int | None = None,
    device: str | Device | None = None,
    edits: int = 0,
    edited_rows: int = 0,
) -> str:
    """A table, one line per model, task and method, and the sums below it. Packs are those that
    ``sweep`` would train.

    For this machine, or for ``gpus`` (default 1) of the ``device`` named. With ``edits`` a line on
    what it takes to edit each trial in so many ways and evaluate it again, on ``edited_rows`` rows
    of validation and as many of training. ``ValueError`` for a device that isn't known.
    """
    named = device_named(device) if isinstance(device, str) else device
    opened = begun(store)
    inputs.check_budget(opened)
    todo = {trial.id for trial in missing(opened, inputs.trials)}
    free, workers = (named.memory, gpus or 1) if named else (inputs.free, default_workers())
    kind = "cuda" if named else inputs.device.type
    space = room(kind, free=free, trials=len(inputs.trials), workers=workers)
    groups = [Group(inputs, trials, todo, space, kind) for trials in _grouped(inputs.trials)]
    rate, source, floor = _rate(groups, opened, inputs.device, named, workers)
    seconds = [group.seconds(rate / workers, floor) for group in groups]
    console = Console(width=140)
    with console.capture() as printed:
        console.print(_table(groups, seconds, named))
    flops = sum(group.flops for group in groups)
    each = [s / g.packs for g, s in zip(groups, seconds, strict=True) for _ in range(g.packs)]
    wall = _wall(each, workers)
    lines = [
        f"{len(todo)} of {len(inputs.trials)} trials to train: {flops / 1e12:.4g} TFLOP, "
        f"{sum(group.packs for group in groups)} packs",
        f"about {duration(wall)} on {_place(workers, named, inputs.device)}"
        + (
            f", {sum(seconds) / 3600:.3g} GPU-hours"
            if named or inputs.device.type == "cuda"
            else ""
        )
        + f" ({source})",
    ]
    if edits:
        lines.append(_edited(groups, edits, edited_rows, rate))
    lines += inputs.summaries()
    lines += [f"{name}: {drawn}" for name, drawn in inputs.drawn.items()]
    too_large = [group for group in groups if group.largest > free]
    if too_large:
        lines.append(
            f"a pack of {too_large[0].what} needs {too_large[0].largest / 1e9:.3g} GB; found "
            f"{free / 1e9:.3g} GB for "
            "each worker. Take fewer workers, a smaller batch_size or a larger machine"
        )
    slow = {t.model: why for t in inputs.trials if (why := inputs.why_slow(t, kind))}
    lines += [f"{model}: {why}" for model, why in slow.items()]
    return printed.get() + "\n".join([*lines, *design_lines(inputs)])


@dataclass
class Group:
    """The trials of one model, task, method and budget."""

    inputs: StudyInputs
    trials: list[Trial]
    todo: set[str]
    room: Room
    device: str

    def __post_init__(self) -> None:
        first = self.trials[0]
        self._operations: dict[int | None, float] = {}
        self._memory: dict[int | None, float] = {}
        self.what = f"{first.model}, {first.task}, {first.method}"
        self.shape: Shape = self.inputs.shape(first)
        self.rows: Rows = self.inputs.rows(first)
        self.rest = [trial for trial in self.trials if trial.id in self.todo]
        self.widths = widths(first, self.device)
        share = self.inputs.share(self.room.memory, self.device)
        together = packs(self.rest or self.trials, size=self.room.most, share=share)
        self.packs = len(together) if self.rest else 0
        self.together = math.ceil(
            len(self.rest or self.trials) / len(together)
        )  # trials of a typical pack
        self.flops = sum(self.operations(trial) for trial in self.rest)
        base = base_memory(first, self.shape, self.rows, self.widths)
        self.largest = base + max(sum(map(self.memory, pack)) for pack in together)

    def seconds(self, rate: float, floor: float) -> float:
        """Of one worker, at ``rate`` operations a second and no step faster than ``floor`` seconds
        a block."""
        steps = self.packs * self.inputs.steps(self.trials[0])
        return max(self.flops / rate, steps * self.shape.layers * floor)

    # within a group costs differ by rank alone

    def operations(self, trial: Trial) -> float:
        if trial.rank not in self._operations:
            self._operations[trial.rank] = operations(
                trial, self.shape, self.rows, together=self.together
            )
        return self._operations[trial.rank]

    def memory(self, trial: Trial) -> float:
        if trial.rank not in self._memory:
            self._memory[trial.rank] = memory(trial, self.shape, self.rows, self.widths)
        return self._memory[trial.rank]


def _edited(groups: Sequence[Group], edits: int, rows: int, rate: float) -> str:
    """What ``rankscope intervene`` costs when all have finished: the products of its evaluations,
    by one process. Decompositions and drifts of the edited updates come on top."""
    flops = 0.0
    for group in groups:
        for split in group.inputs.encoded(group.trials[0]):
            lengths = split.lengths[:rows].double()
            each = forward_operations(group.shape, float(lengths.mean()))
            flops += edits * len(group.trials) * len(lengths) * each
    trials = sum(len(group.trials) for group in groups)
    return (
        f"rankscope intervene would edit {trials} trials in {edits} ways each, on {rows} "
        f"validation and {rows} training rows: {flops / 1e12:.4g} TFLOP, about "
        f"{duration(flops / rate)} at the same rate"
    )


def _table(groups: Sequence[Group], seconds: Sequence[float], device: Device | None) -> Table:
    names = [group.trials[0].model.rsplit("/", 1)[-1] for group in groups]
    model = Column("model", min_width=min(30, max(map(len, names))))  # others may wrap
    columns = (
        model,
        "task",
        "method",
        "trials",
        "done",
        "packs",
        "steps each",
        "tokens a row",
        "TFLOP",
    )
    hours = "GPU-hours" if device else "worker time"
    table = Table(*columns, "MB a trial", "MB a pack", hours)
    for group, name, spent in zip(groups, names, seconds, strict=True):
        first = group.trials[0]
        table.add_row(
            name, first.task, first.method, str(len(group.trials)),
            str(len(group.trials) - len(group.rest)),
            str(group.packs), str(group.inputs.steps(first)), f"{group.rows.tokens:.1f}",
            f"{group.flops / 1e12:.4g}",
            f"{max(map(group.memory, group.trials)) / 1e6:.3g}", f"{group.largest / 1e6:.0f}",
            f"{spent / 3600:.3g}" if device else duration(spent),
        )  # fmt: skip
    return table


def _grouped(trials: Sequence[Trial]) -> list[list[Trial]]:
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:  # arms may train for longer
        groups.setdefault(
            (
                trial.model,
                trial.task,
                trial.method,
                trial.epochs,
                trial.steps,
                *trial.target_modules,
            ),
            [],
        ).append(trial)
    return list(groups.values())


def _wall(packs: Sequence[float], workers: int) -> float:
    """When the last of the workers is ready, each taking the largest pack that is left."""
    ready = [0.0] * workers
    for pack in sorted(packs, reverse=True):
        heapq.heapreplace(ready, ready[0] + pack)
    return max(ready)


def _rate(
    groups: Sequence[Group],
    store: Store | None,
    here: torch.device,
    device: Device | None,
    workers: int,
) -> tuple[float, str, float]:
    """Operations a second of all workers, where that number comes from (what this store's finished
    trials reached on such a device, or a share of what the device can do at most), and the seconds
    a step of one block takes at least."""
    gpu = device.name if device else torch.cuda.get_device_name() if here.type == "cuda" else None
    found = _measured(groups, store, gpu)
    if found is not None:
        rate, count = found
        return (
            rate * workers,
            f"{_flops(rate)} a worker, as {count} of the store's finished trials",
            0.0,
        )
    if device is not None:
        rate = _SHARE_OF_PEAK * device.peak
        assumed = f"assuming {_SHARE_OF_PEAK:.0%} of {_flops(device.peak)} each and {_LAUNCHES}"
        return rate * workers, assumed, _STEP_OF_A_BLOCK
    return rate_here(matrix_rate(here), here.type, workers)


def rate_here(peak: float, kind: str, workers: int) -> tuple[float, str, float]:
    """The same for a machine whose matrix product was measured: a GPU's is each worker's own, a
    CPU's is shared."""
    measured = "the matrix product measured now"
    if kind == "cuda":
        assumed = f"{_SHARE:.0%} of {_flops(peak)} each, {measured}, and {_LAUNCHES}"
        return _SHARE * peak * workers, assumed, _STEP_OF_A_BLOCK
    return _SHARE * peak, f"{_SHARE:.0%} of {_flops(peak)}, {measured}", 0.0


def _measured(
    groups: Sequence[Group], store: Store | None, gpu: str | None
) -> tuple[float, int] | None:
    """Operations a second of one worker, over a sample of the finished trials that ran on such a
    device."""
    if store is None:
        return None
    seconds = store.trials().set_index("trial")["seconds"]
    finished = [(group, t) for group in groups for t in group.trials if t.id in seconds.index]
    sample = finished[:: max(1, len(finished) // _SAMPLE)]
    machines = store.machines()
    there = [
        (group, trial)
        for group, trial in sample
        if _same_device(machines[trial.id].get("gpu"), gpu)
    ]
    if not there:
        return None
    done = sum(group.operations(trial) for group, trial in there)
    return done / float(seconds[[trial.id for _, trial in there]].sum()), len(there)


def _same_device(trained_on: str | None, wanted: str | None) -> bool:
    if trained_on is None or wanted is None:
        return trained_on is wanted
    return wanted.lower() in trained_on.lower().replace(" ", "") or wanted == trained_on


def _place(workers: int, device: Device | None, here: torch.device) -> str:
    if device is not None:
        return f"{workers} x {device.name}"
    return f"this machine, {workers} worker{'s' * (workers > 1)}"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def begun(store: str | Path | None) -> Store | None:
    """The store, if it has been begun."""
    try:
        return None if store is None else Store(store)
    except FileNotFoundError:
        return None


def matrix_rate(device: torch.device, *, seconds: float = 0.25) -> float:
    """Operations a second of a float32 matrix product of 1024 x 1024, measured for about
    ``seconds``."""
    a = torch.ones(1024, 1024, device=device)
    (a @ a).sum().item()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        (a @ a)[0, 0].item()  # waits for the device
        count += 1
    return count * 2 * 1024**3 / (time.perf_counter() - started)
