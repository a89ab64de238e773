"""This machine's resources for workers: cores, GPUs, memory for a pack."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rankscope import system
from rankscope.study.study_file import Study

PACK_SIZE = 8  # measured on two CPU cores: larger packs leave the caches (docs/log.md)
SHARE = 0.8  # of the free memory; the rest covers the error of the estimate (15 %)
PROGRAM = 0.6e9  # bytes of a worker before it trains: Python, torch, transformers (docs/log.md)


@dataclass(frozen=True)
class Room:
    """The limits of a worker's packs."""

    most: int  # trials
    memory: float  # bytes, the base's weights included


def room(device: str, *, free: float, trials: int, workers: int) -> Room:
    """On a CPU the caches limit a pack; on a GPU only memory does, and there is a pack for every
    worker."""
    most = PACK_SIZE if device == "cpu" else max(PACK_SIZE, math.ceil(trials / workers))
    return Room(most, SHARE * free)


def gpus() -> int:
    """How many GPUs torch can use; imports torch only if there may be one."""
    if "torch" not in sys.modules and not system.may_have_gpu():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def has_mps() -> bool:
    """Whether there is a GPU of Apple's that torch can use; imports torch only if there may be."""
    if not system.may_have_mps():
        return False
    import torch

    return torch.backends.mps.is_available()


def device_type() -> str:
    """The device type that trials train on, as torch names it."""
    return "cuda" if gpus() else "mps" if has_mps() else "cpu"


def gpu_name(device_type: str) -> str | None:
    """The name of the GPU that trials train on; None if they train on a CPU."""
    if device_type != "cuda":
        return {"mps": "Apple GPU (MPS)"}.get(device_type)
    import torch

    return str(torch.cuda.get_device_name())


ON_MPS = (
    "training on Apple's GPU (MPS), in float32 and without torch's fused AdamW; it has no float64, "
    "so stable ranks are measured on the CPU. Never run on such hardware yet: RANKSCOPE_DEVICE=cpu "
    "trains on the CPU"
)


def check_precision(study: Study, device: str) -> None:
    """``ValueError`` where a study asks for what its device has not been tried with."""
    if device == "mps" and study.fixed.precision == "bfloat16":
        raise ValueError(
            '[fixed] precision: expected "float32" on Apple\'s GPU; found "bfloat16". Change it, '
            "or train on the CPU: RANKSCOPE_DEVICE=cpu rankscope run ..."
        )


def free_for_each(workers: int) -> float:
    """The memory that each of so many workers can rely on, in bytes."""
    if count := gpus():
        import torch

        return shared(torch.cuda.mem_get_info()[0], math.ceil(workers / count))
    return shared(free_here(), workers)


def free_here() -> float:
    """The memory that this process may still take, in bytes."""
    return min(system.free_memory(), left_by_cgroup())


def shared(free: float, workers: int) -> float:
    """One worker's share of so many bytes, rounded down to gigabytes if it has any.

    Small changes of free memory should not change the packs.
    """
    return free / workers // 1e9 * 1e9 or free / workers


def left_by_cgroup(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """The bytes left by a container's memory limit; infinite if there is none."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return float(limit) - float(used)
    except (OSError, ValueError):  # no limit, or "max"
        return math.inf


def default_workers() -> int:
    """The number of workers that trains fastest: one per GPU, or one per core (docs/log.md)."""
    return gpus() or (1 if has_mps() else system.cores())


def workers_with_room(wanted: int, need: float, *, free: float) -> tuple[int, str | None]:
    """How many of the wanted workers fit into ``free`` bytes (at least one), if each needs ``need``
    bytes for tensors. -> that number, and a line if memory is short. On GPUs each worker has its
    own memory, and packs are cut to fit."""
    if gpus():
        return wanted, None
    each = need + PROGRAM
    fit = max(1, min(wanted, int(free // each)))
    if fit == wanted and free >= each:
        return wanted, None
    return fit, (
        f"{free / 1e9:.3g} GB of memory are free, and a worker of this study needs about "
        f"{each / 1e9:.3g} GB: there is room for {free / each:.1f} of {wanted}"
    )


def environments(workers: int) -> list[dict[str, str]]:
    """Each worker's environment: its GPU, or its share of the cores."""
    if count := gpus():
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        devices = names.split(",")
        return [{"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(workers)]
    threads = max(1, system.cores() // workers)
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}] * workers
