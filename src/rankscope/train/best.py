"""The best weights of each trial so far, by its validation metric. Letters: K trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rankscope.train.rows import Rows


class Best:
    """Starts as the untrained weights at step 0, so that a trial without any evaluation
    still has something to keep."""

    def __init__(self, rows: Sequence[Rows], trials: int) -> None:
        self._rows = list(rows)
        self.values = [group.values.clone() for group in rows]
        self.metric: list[float | None] = [None] * trials
        self.step = [0] * trials

    @torch.no_grad()
    def offer(self, k: int, step: int, metric: float) -> None:
        """Keeps trial k's current weights if ``metric`` beats all before; a tie keeps the earlier
        ones."""
        best = self.metric[k]
        if math.isnan(metric) or (best is not None and metric <= best):
            return
        self.metric[k], self.step[k] = metric, step
        for kept, group in zip(self.values, self._rows, strict=True):
            if group.slots.start <= k < group.slots.stop:
                kept[k - group.slots.start] = group.values[k - group.slots.start]
