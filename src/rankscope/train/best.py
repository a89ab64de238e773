"""The best weights of each trial so far, by its validation metric. Letters: K trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Best:
    """Starts as the untrained weights at step 0, so that a trial without any evaluation still has something to keep."""

    def __init__(self, parameters: Sequence[Tensor], trials: int) -> None:
        self._current = list(parameters)
        self._trials = trials
        self.parameters = [p.detach().clone() for p in parameters]
        self.value: list[float | None] = [None] * trials
        self.step = [0] * trials

    @torch.no_grad()
    def offer(self, k: int, step: int, value: float) -> None:
        """Keeps trial k's current weights if ``value`` beats all before; a tie keeps the earlier ones."""
        best = self.value[k]
        if math.isnan(value) or (best is not None and value <= best):
            return
        self.value[k], self.step[k] = value, step
        for kept, current in zip(self.parameters, self._current, strict=True):
            kept.view(self._trials, -1)[k] = current.view(self._trials, -1)[k]
