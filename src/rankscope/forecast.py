"""What a study will take: trials, packs, operations, memory, time. Before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rankscope.overview import duration
from rankscope.study.cost import memory, operations
from rankscope.study.execution import missing
from rankscope.study.plan import Trial, packs
from rankscope.study.store import Store
from rankscope.sweep import PACK_SIZE, Inputs

_SHARE = 0.35  # of the matrix-product rate that training reaches; measured on the lab study (docs/log.md)


def forecast(inputs: Inputs, store: str | Path | None) -> str:
    """A table, one line per model, task and method, and the sums below it."""
    opened = Store(store) if store is not None and (Path(store) / "store.json").is_file() else None
    todo = {trial.id for trial in missing(opened, inputs.trials)}
    rate, source = _rate(inputs, opened)
    table = Table(
        "model",
        "task",
        "method",
        "trials",
        "done",
        "packs",
        "steps each",
        "tokens a row",
        "TFLOP",
        "MB a pack",
        "time",
    )
    total = 0.0
    for (model, task, method), members in _grouped(inputs.trials).items():
        rest = [trial for trial in members if trial.id in todo]
        groups = packs(rest or members, size=PACK_SIZE)
        shape, rows = inputs.shape(members[0]), inputs.rows(members[0])
        flops = sum(operations(trial, shape, rows) for trial in rest)
        largest = max(sum(memory(trial, shape, rows) for trial in pack) for pack in groups) + 4 * shape.all
        total += flops
        table.add_row(
            model, task, method, str(len(members)), str(len(members) - len(rest)), str(len(groups) if rest else 0),
            str(inputs.steps(members[0])), f"{rows.tokens:.1f}", f"{flops / 1e12:.4g}", f"{largest / 1e6:.0f}",
            duration(flops / rate),
        )  # fmt: skip
    console = Console(width=130)
    with console.capture() as printed:
        console.print(table)
    return (
        f"{printed.get()}{len(todo)} of {len(inputs.trials)} trials to train: {total / 1e12:.4g} TFLOP, "
        f"about {duration(total / rate)} on this machine ({source})"
    )


def _grouped(trials: Sequence[Trial]) -> dict[tuple[str, str, str], list[Trial]]:
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.model, trial.task, trial.method), []).append(trial)
    return groups


def _rate(inputs: Inputs, store: Store | None) -> tuple[float, str]:
    """Operations a second: what this store's finished trials reached, or a share of a measured matrix product."""
    if store is not None and store.done():
        seconds = store.trials().set_index("trial")["seconds"]
        finished = [trial for trial in inputs.trials if trial.id in seconds.index]
        if finished:
            done = sum(operations(t, inputs.shape(t), inputs.rows(t)) for t in finished)
            rate = done / float(seconds[[t.id for t in finished]].sum())
            return rate, f"{rate / 1e9:.3g} GFLOP/s, as the store's {len(finished)} finished trials"
    peak = matrix_rate(inputs.device)
    return _SHARE * peak, f"{_SHARE:.0%} of {peak / 1e9:.3g} GFLOP/s, the matrix product measured now"


def matrix_rate(device: torch.device, *, seconds: float = 0.5) -> float:
    """Operations a second of a float32 matrix product of 1024 x 1024, measured for about ``seconds``."""
    a = torch.ones(1024, 1024, device=device)
    (a @ a).sum().item()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        (a @ a)[0, 0].item()  # waits for the device
        count += 1
    return count * 2 * 1024**3 / (time.perf_counter() - started)
