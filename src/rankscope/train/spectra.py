"""Stable ranks of W, dW and W + dW while a pack trains. Letters: S sites of one shape, K trials."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rankscope.linalg import Dense, Operator, summary
from rankscope.train.updates import Updates

COLUMNS = ("stable_rank", "lower", "upper", "spectral_norm", "frobenius_norm", "effective_rank")
RTOL = 1e-3  # relative width of the bounds: far below what a plot or a threshold can show


class Pack(Protocol):
    trials: list[Any]

    def updates(self) -> Any: ...


class Recorder:
    """Collects the rows (step, layer, matrix, ...) of each trial of a pack, one batched call per shape and matrix."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self._parts: list[list[pd.DataFrame]] = [[] for _ in pack.trials]

    def record(self, step: int, *, alive: Tensor) -> None:
        """The spectra of all sites after ``step`` steps; W at step 0 only. Trials that are not alive get no row."""
        living = alive.nonzero().flatten().tolist()
        for update in self.pack.updates():
            if step == 0:
                self._add(update, step, "W", Dense(update.W[:, None]), living)
            self._add(update, step, "dW", update.dW, living)
            self._add(update, step, "W+dW", update.tuned, living)

    def frame(self, k: int) -> pd.DataFrame:
        """All rows of trial k."""
        return pd.concat(self._parts[k], ignore_index=True)

    def _add(self, update: Updates, step: int, matrix: str, operator: Operator, living: list[int]) -> None:
        found = summary(operator, rtol=RTOL, effective_rank=matrix == "dW")
        sr = found.stable_rank
        numbers = (
            sr.value,
            sr.lower,
            sr.upper,
            found.spectral_norm,
            found.frobenius_norm,
            found.effective_rank,
        )
        S, start, stop = len(update.layers), update.slots.start, update.slots.stop
        table = np.stack(
            [torch.as_tensor(x).double().cpu().expand(S, stop - start).numpy() for x in numbers]
        )  # (6, S, K)
        m, n = operator.shape[-2:]
        for k in (k for k in living if start <= k < stop):
            part = pd.DataFrame({"step": step, "layer": update.layers, "matrix": matrix, "m": m, "n": n})
            self._parts[k].append(part.assign(**dict(zip(COLUMNS, table[:, :, k - start], strict=True))))
