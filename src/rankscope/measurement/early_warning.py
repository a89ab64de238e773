"""Levels of drift and rho at which the callback warns or ends a training.

docs/results/early-warning measures, on stored trials, how often such a warning is false and how
long before the loss it comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist

LEVELS = ("drift", "rho")


def checked_levels(warn: Mapping[str, float], stop: bool) -> dict[str, float]:
    """``ValueError``, one line, if they are not levels, or ``stop`` has no level."""
    for quantity, level in warn.items():
        right = isinstance(level, (int, float)) and math.isfinite(level) and level > 0
        if quantity not in LEVELS or not right:
            raise ValueError(
                f"StableRankCallback: expected warn as levels above 0 of {' or '.join(LEVELS)}, "
                f"such as {{'drift': 0.15}}; found {{{quantity!r}: {level!r}}}."
            )
    if stop and not warn:
        raise ValueError("StableRankCallback: expected warn= with a level to stop at; found none.")
    return dict(warn)


def first_process_says(flag: bool, device: torch.device) -> bool:
    """The first process's answer, on every process: one that stopped alone would leave the others
    waiting."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return flag
    answer = torch.tensor(int(flag), device=device)
    dist.broadcast(answer, src=0)
    return bool(answer)
