"""Forecasts what a study will take: trials, packs, operations, memory, time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Column, Table

from rankscope.analysis.design import accuracy_noise, design
from rankscope.analysis.settings import labelled
from rankscope.console import duration
from rankscope.study.cost import (
    Device,
    Rows,
    Shape,
    adapter_kind,
    base_memory,
    device_named,
    forward_operations,
    memory,
    operations,
    widths,
)
from rankscope.study.packing import packs
from rankscope.study.settings import compared
from rankscope.study.trial import Trial
from rankscope.sweep.machine import Room, default_workers, room
from rankscope.sweep.sizes import Sizes
from rankscope.sweep.speed import speed
from rankscope.sweep.worker import begun, missing


def forecast(
    inputs: Sizes,
    store: str | Path | None,
    *,
    gpus: int | None = None,
    device: str | Device | None = None,
    edits: int = 0,
    edited_rows: int = 0,
) -> str:
    """A table with one line per model, task and method, and the totals. The packs are those that
    ``run`` would train.

    For this machine, or for ``gpus`` (default 1) of the named ``device``. With ``edits`` also the
    cost of editing each trial in so many ways and evaluating it on ``edited_rows`` validation rows
    and as many training rows. ``ValueError`` for an unknown device.
    """
    named = device_named(device) if isinstance(device, str) else device
    opened = begun(store)
    inputs.check_budget(opened)
    todo = {trial.id for trial in missing(opened, inputs.trials)}
    free, workers = (named.memory, gpus or 1) if named else (inputs.free, default_workers())
    kind = "cuda" if named else inputs.device_type
    space = room(kind, free=free, trials=len(inputs.trials), workers=workers)
    groups = [Group(inputs, trials, todo, space, kind) for trials in _grouped(inputs.trials)]
    priced = [(group.trials, group.operations) for group in groups]
    found = speed(priced, opened, inputs.device_type, named, workers)
    seconds = [group.seconds(found.rate / workers, found.floor) for group in groups]
    console = Console(width=140)
    with console.capture() as printed:
        console.print(_table(groups, seconds, named))
    flops = sum(group.flops for group in groups)
    each = [s / g.packs for g, s in zip(groups, seconds, strict=True) for _ in range(g.packs)]
    wall = _wall(each, workers)
    lines = [
        f"{len(todo)} of {len(inputs.trials)} trials to train: {flops / 1e12:.4g} TFLOP, "
        f"{sum(group.packs for group in groups)} packs",
        f"about {duration(wall)} on {_place(workers, named)}"
        + (
            f", {sum(seconds) / 3600:.3g} GPU-hours"
            if named or inputs.device_type == "cuda"
            else ""
        )
        + f" ({found.source})",
    ]
    if edits:
        lines.append(_edited(groups, edits, edited_rows, found.rate))
    lines += inputs.summaries
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

    inputs: Sizes
    trials: list[Trial]
    todo: set[str]
    room: Room
    device: str

    def __post_init__(self) -> None:
        first = self.trials[0]
        self._operations: dict[tuple[Any, ...], float] = {}
        self._memory: dict[tuple[Any, ...], float] = {}
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
        """The time of one worker, at ``rate`` operations a second and at least ``floor`` seconds
        per step and block."""
        steps = self.packs * self.inputs.steps(self.trials[0])
        return max(self.flops / rate, steps * self.shape.layers * floor)

    # within a group costs differ only by the kind of adapter

    def operations(self, trial: Trial) -> float:
        if (kind := adapter_kind(trial)) not in self._operations:
            self._operations[kind] = operations(
                trial, self.shape, self.rows, together=self.together
            )
        return self._operations[kind]

    def memory(self, trial: Trial) -> float:
        if (kind := adapter_kind(trial)) not in self._memory:
            self._memory[kind] = memory(trial, self.shape, self.rows, self.widths)
        return self._memory[kind]


def _edited(groups: Sequence[Group], edits: int, rows: int, rate: float) -> str:
    """The cost of ``rankscope intervene`` on all trials, in one process: matrix products of its
    evaluations, without decompositions and drifts of the edited updates."""
    flops = 0.0
    read: list[set[int]] = [set(), set()]  # rows of train and validation, by task
    for group in groups:
        parts = group.inputs.mean_tokens(group.trials[0], rows)
        for seen, (count, tokens) in zip(read, parts, strict=True):
            seen.add(count)
            each = forward_operations(group.shape, tokens)
            flops += edits * len(group.trials) * count * each
    train, validation = (_range(seen) for seen in read)
    trials = sum(len(group.trials) for group in groups)
    return (
        f"rankscope intervene would edit {trials} trials in {edits} ways each, on {validation} "
        f"validation and {train} training rows: {flops / 1e12:.4g} TFLOP, about "
        f"{duration(flops / rate)} at the same rate"
    )


def _range(numbers: Collection[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(most) if least == most else f"{least} to {most}"


def _table(groups: Sequence[Group], seconds: Sequence[float], device: Device | None) -> Table:
    names = [group.trials[0].model.rsplit("/", 1)[-1] for group in groups]
    model = Column("model", min_width=min(30, max(map(len, names))))  # others may wrap
    columns = (
        model, "task", "method", "trials", "done", "packs", "steps each", "tokens a row", "TFLOP",
    )  # fmt: skip
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
    """When the last worker finishes, if each takes the largest remaining pack."""
    ready = [0.0] * workers
    for pack in sorted(packs, reverse=True):
        heapq.heapreplace(ready, ready[0] + pack)
    return max(ready)


def _place(workers: int, device: Device | None) -> str:
    if device is not None:
        return f"{workers} x {device.name}"
    return f"this machine, {workers} worker{'s' * (workers > 1)}"


_OWN = ("model", "task", "method", "rank", "scaling", "learning_rate", "seed", "setting")


def design_lines(inputs: Sizes) -> list[str]:
    """The settings that are compared, then one line per hypothesis and answer, with the tasks that
    it holds for."""
    planned = labelled(_planned(inputs))
    found: dict[tuple[str, str, str], list[str]] = {}
    several = planned["model"].nunique() > 1
    for check in design(planned):
        place = f"{check.task} ({check.model})" if several else check.task
        found.setdefault((check.hypothesis, check.answerable, check.reason), []).append(place)
    return compared(inputs.trials) + [
        f"{hypothesis} can be answered on {', '.join(places)}: {answerable}. {reason}"
        for (hypothesis, answerable, reason), places in sorted(found.items())
    ]


def _planned(inputs: Sizes) -> pd.DataFrame:
    """One row per trial. By columns: 100,000 rows take a tenth of the time of as many dicts."""
    trials = inputs.trials
    table = pd.DataFrame({name: [getattr(trial, name) for trial in trials] for name in _OWN})
    seen: dict[tuple[object, ...], tuple[int, float]] = {}
    for trial in trials:
        if (key := _evaluated(trial)) not in seen:
            seen[key] = _evaluations(inputs, trial)
    evaluations, noise = zip(*(seen[_evaluated(trial)] for trial in trials), strict=True)
    ids = [trial.id for trial in trials]
    return table.assign(trial=ids, evaluations=evaluations, noise=noise)


def _evaluated(trial: Trial) -> tuple[object, ...]:
    """What a trial's number of evaluations depends on."""
    length = (trial.max_length, trial.batch_size, trial.epochs, trial.steps)
    return (trial.model, trial.task, trial.eval_every, *length)


def _evaluations(inputs: Sizes, trial: Trial) -> tuple[int, float]:
    """The number of validation rows, and the noise of one."""
    rows = inputs.rows(trial)
    per_epoch = math.ceil(rows.train / trial.batch_size)
    every = per_epoch if trial.eval_every == "epoch" else trial.eval_every
    # unknown for a loss before there are losses
    noise = math.nan if inputs.is_language(trial.task) else accuracy_noise(rows.validation)
    return max(1, inputs.steps(trial) // every), noise
