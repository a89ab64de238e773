"""The speed of training in operations a second: that of a store's trials, or a share of the
machine's peak. Imports torch only to measure."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rankscope import system
from rankscope.store.files import read_json, write_json
from rankscope.store.store import Store
from rankscope.study.cost import Device
from rankscope.study.trial import Trial
from rankscope.sweep.machine import gpu_name

# share of the matrix-product rate that training reaches; measured on the lab study (docs/log.md)
_SHARE = 0.35
# share of a GPU's data-sheet peak: an assumption until a store has trials of such a GPU
_SHARE_OF_PEAK = 0.25
# minimum seconds on a GPU, for launching some hundred kernels; assumed
_STEP_OF_A_BLOCK = 2e-3
_LAUNCHES = f"{1e3 * _STEP_OF_A_BLOCK:g} ms a block and step"
_SAMPLE = 200  # finished trials that the measured rate is taken from
_BUSY = 0.5  # load per core above which a measured rate is too low
Priced = tuple[Sequence[Trial], Callable[[Trial], float]]  # trials, and the operations of each


class Speed(NamedTuple):
    """``rate``: operations a second of all workers; ``source``: where it comes from, in words;
    ``floor``: minimum seconds per step and block."""

    rate: float
    source: str
    floor: float = 0.0


def speed(
    groups: Iterable[Priced], store: Store | None, here: str, device: Device | None, workers: int
) -> Speed:
    """The speed of this machine (``here``: "cpu", "cuda" or "mps"), or of so many ``device``s."""
    gpu = device.name if device else gpu_name(here)
    found = _measured(groups, store, gpu)
    if found is not None:
        rate, count = found
        source = f"{flops(rate)} a worker, as {count} of the store's finished trials"
        return Speed(rate * workers, source)
    if device is not None:
        assumed = f"assuming {_SHARE_OF_PEAK:.0%} of {flops(device.peak)} each and {_LAUNCHES}"
        return Speed(_SHARE_OF_PEAK * device.peak * workers, assumed, _STEP_OF_A_BLOCK)
    return speed_here(*_cpu_rate() if here == "cpu" else (matrix_rate(here), ""), here, workers)


def speed_here(peak: float, note: str, kind: str, workers: int) -> Speed:
    """The speed of a machine whose matrix product was measured: a GPU serves one worker, a CPU is
    shared by all."""
    measured = f"the fastest matrix product measured here{note}"
    if kind != "cpu":
        assumed = f"{_SHARE:.0%} of {flops(peak)} each, {measured}, and {_LAUNCHES}"
        return Speed(_SHARE * peak * workers, assumed, _STEP_OF_A_BLOCK)
    return Speed(_SHARE * peak, f"{_SHARE:.0%} of {flops(peak)}, {measured}")


def _measured(
    groups: Iterable[Priced], store: Store | None, gpu: str | None
) -> tuple[float, int] | None:
    """Operations a second of one worker, over a sample of the finished trials that ran on such a
    device."""
    if store is None:
        return None
    seconds = store.trials().set_index("trial")["seconds"]
    finished = [(cost, t) for trials, cost in groups for t in trials if t.id in seconds.index]
    sample = finished[:: max(1, len(finished) // _SAMPLE)]
    machines = store.machines()
    there = [(c, t) for c, t in sample if _same_device(machines[t.id].get("gpu"), gpu)]
    if not there:
        return None
    done = sum(cost(trial) for cost, trial in there)
    return done / float(seconds[[trial.id for _, trial in there]].sum()), len(there)


def _same_device(trained_on: str | None, wanted: str | None) -> bool:
    if trained_on is None or wanted is None:
        return trained_on is wanted
    return wanted.lower() in trained_on.lower().replace(" ", "") or wanted == trained_on


def flops(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def _cpu_rate() -> tuple[float, str]:
    """The fastest matrix product ever measured here, and the machine's load if it is busy.

    A rate measured on a busy machine is too low: it is measured again when the machine is idle.
    """
    load, cores = _load(), system.cores()
    busy = load > _BUSY * cores
    note = f"; {load:.1f} processes compute on its {cores} cores now: slower while they do"
    return fastest(_place(), lambda: matrix_rate("cpu"), busy=busy), note * busy


def fastest(place: Path | None, measure: Callable[[], float], *, busy: bool) -> float:
    """The fastest rate ever measured, kept in the file ``place``. It is measured if none is known,
    or none from an idle machine and this one is idle now."""
    old, was_idle = 0.0, False
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if place is not None:
            content: dict[str, Any] = read_json(place)
            old, was_idle = float(content["rate"]), bool(content["idle"])
    if old and (was_idle or busy):
        return old
    rate = max(old, measure())
    with contextlib.suppress(OSError):
        if place is not None:
            write_json(place, {"rate": rate, "idle": not busy})
    return rate


def _load() -> float:
    """The mean number of running processes in the last minute; 0 if unknown."""
    with contextlib.suppress(AttributeError, OSError):
        return os.getloadavg()[0]
    return 0.0


def _place() -> Path | None:
    """The file with the rate of this machine and library; None if others can write to it."""
    key = (platform.node(), system.cores(), os.environ.get("OMP_NUM_THREADS"), version("torch"))
    folder = system.own_cache("speed")
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return None if folder is None else folder / f"{name}.json"


def matrix_rate(device: str, *, seconds: float = 0.25) -> float:
    """Operations a second of a float32 matrix product of 1024 x 1024: the fastest within about
    ``seconds``, since other load slows some."""
    import torch

    a = torch.ones(1024, 1024, device=device)
    (a @ a).sum().item()
    started, fastest = time.perf_counter(), float("inf")
    while (before := time.perf_counter()) - started < seconds:
        (a @ a)[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - before)
    return 2 * 1024**3 / fastest
