"""What this machine has for its workers: cores, GPUs, and room for a pack."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rankscope import system

PACK_SIZE = 8  # measured on two CPU cores: larger packs leave the caches (docs/log.md)
SHARE = 0.8  # of the free memory; the rest is for what the count misses (it is right to 15 %)
PROGRAM = 0.6e9  # bytes of a worker before it trains: Python, torch, transformers (docs/log.md)


@dataclass(frozen=True)
class Room:
    """What a worker's packs may hold."""

    most: int  # trials
    memory: float  # bytes, the base's weights included


def room(device: str, *, free: float, trials: int, workers: int) -> Room:
    """On a CPU the caches set the most; on a GPU only memory does, while every worker gets
    a pack of the ``trials``."""
    most = PACK_SIZE if device == "cpu" else max(PACK_SIZE, math.ceil(trials / workers))
    return Room(most, SHARE * free)


def gpus() -> int:
    """How many GPUs torch can use here; torch is started only where there may be one."""
    if "torch" not in sys.modules and not system.may_have_gpu():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_type() -> str:
    """What trials train on here, by torch's name."""
    return "cuda" if gpus() else "cpu"


def free_for_each(workers: int) -> float:
    """Bytes that each of so many workers here may count on."""
    if count := gpus():
        import torch

        return shared(torch.cuda.mem_get_info()[0], math.ceil(workers / count))
    return shared(min(system.free_memory(), left_by_cgroup()), workers)


def shared(free: float, workers: int) -> float:
    """One worker's part of so many bytes, in whole gigabytes where there are some.

    Packs should not change with every small thing that comes and goes.
    """
    return free / workers // 1e9 * 1e9 or free / workers


def left_by_cgroup(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that a container's own limit leaves; infinite where there is none."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return float(limit) - float(used)
    except (OSError, ValueError):  # there is none, or it is "max"
        return math.inf


def default_workers() -> int:
    """How many workers this machine trains fastest with: one per GPU, or one per core
    (docs/log.md)."""
    return gpus() or system.cores()


def workers_with_room(wanted: int, need: float) -> tuple[int, str | None]:
    """How many of the workers wanted there is memory for now, whoever holds the rest, if each needs
    ``need`` bytes for tensors; one at least. -> that number, and a line where memory is short.
    On GPUs each worker has its own, and packs are cut for it."""
    if gpus():
        return wanted, None
    free, each = min(system.free_memory(), left_by_cgroup()), need + PROGRAM
    fit = max(1, min(wanted, int(free // each)))
    if fit == wanted and free >= each:
        return wanted, None
    return fit, (
        f"{free / 1e9:.3g} GB of memory are free, and a worker of this study needs about "
        f"{each / 1e9:.3g} GB: there is room for {free / each:.1f} of {wanted}"
    )


def environments(workers: int) -> list[dict[str, str]]:
    """Of each worker: its GPU, or its share of the cores."""
    if count := gpus():
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        devices = names.split(",")
        return [{"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(workers)]
    threads = max(1, system.cores() // workers)
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}] * workers
