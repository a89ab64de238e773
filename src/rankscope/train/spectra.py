"""Stable ranks of W, dW and W + dW while a pack trains. Letters: S sites of one shape, K
trials, k of them in a bucket."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from rankscope.linalg import Dense, LowRank, Operator, Scaled, row_norms, summary

COLUMNS = ("stable_rank", "lower", "upper", "spectral_norm", "frobenius_norm", "effective_rank")
RTOL = 1e-3  # relative width of the bounds: far below what a plot or a threshold can show
# entries times the short side up to which singular values cost less than looks at bounds
FEW = 2**23


@dataclass(frozen=True)
class Updates:
    """The sites of one shape: ``W`` (S, m, n), and for the trials in ``members`` ``dW`` and
    ``tuned`` = W + dW, both (S, K, m, n)."""

    layers: list[str]
    members: slice
    W: Tensor
    dW: Operator
    tuned: Operator


def updated(
    layers: list[str], members: slice, W: Tensor, dW: LowRank, magnitude: Tensor | None
) -> Updates:
    """``Updates`` from dW (S, k, m, n); for DoRA with ``magnitude`` (S, k, m), whose true update
    has full rank: W' - W = (g - 1) W + g dW row by row, with g = magnitude / ||W + dW||."""
    base = Dense(W[:, None])
    if magnitude is None:
        return Updates(layers, members, W, dW, base + dW)
    gain = magnitude.detach().double() / row_norms(base + dW)
    change = Scaled(base, gain - 1) + Scaled(dW, gain)
    return Updates(layers, members, W, change, Scaled(base + dW, gain))


def measurable(x: Tensor) -> Tensor:
    """The tensor where float64 is: its own device, or the CPU for one on Apple's GPU (MPS)."""
    return x.cpu() if x.device.type == "mps" else x


class HasUpdates(Protocol):
    def updates(self) -> Iterable[Updates]: ...


@dataclass(frozen=True)
class Record:
    """The numbers of the sites of one shape, for the trials from ``start`` on that were alive."""

    step: int
    matrix: str
    layers: list[str]
    m: int
    n: int
    start: int
    alive: list[bool]
    numbers: Tensor  # (6, S, k) float64, in the order of COLUMNS

    def holds(self, k: int) -> bool:
        return 0 <= k - self.start < len(self.alive) and self.alive[k - self.start]

    def frame(self, k: int) -> pd.DataFrame:
        keys = {
            "step": self.step,
            "layer": self.layers,
            "matrix": self.matrix,
            "m": self.m,
            "n": self.n,
        }
        columns = zip(COLUMNS, self.numbers[:, :, k - self.start].numpy(), strict=True)
        return pd.DataFrame(keys).assign(**dict(columns))


class Recorder:
    """Collects the spectra of a pack, one batched call per shape, bucket and matrix. A stable rank
    is NaN where it is undefined, or where its bounds lie further apart than ``RTOL``."""

    def __init__(self, pack: HasUpdates) -> None:
        self.pack = pack
        self.records: list[Record] = []

    def record(self, step: int, *, alive: Tensor) -> None:
        """The spectra of all sites after ``step`` steps; W at step 0 only. Trials that are not
        alive get no row."""
        alive_trials = alive.tolist()
        for _, of_one_shape in itertools.groupby(
            self.pack.updates(), key=lambda update: update.layers
        ):
            updates = list(of_one_shape)
            if step == 0:
                self._begin(updates, alive_trials)
                continue
            for update in updates:
                self._add(update, step, "dW", update.dW, alive_trials)
                self._add(update, step, "W+dW", update.tuned, alive_trials)

    def frame(self, k: int) -> pd.DataFrame:
        """All rows of trial k."""
        return pd.concat(
            [record.frame(k) for record in self.records if record.holds(k)], ignore_index=True
        )

    def _begin(self, updates: list[Updates], alive_trials: list[bool]) -> None:
        """Before the first step dW is zero and W + dW is W."""
        update = dataclasses.replace(
            updates[0], members=slice(updates[0].members.start, updates[-1].members.stop)
        )
        if not any(alive_trials[update.members]):
            return
        self._add(update, 0, "W", Dense(update.W[:, None]), alive_trials)
        start = self.records[-1]
        zero = torch.tensor([torch.nan] * 3 + [0.0] * 2 + [torch.nan], dtype=torch.float64)
        zeros = zero[:, None, None].expand_as(start.numbers)
        self.records += [dataclasses.replace(start, matrix="dW", numbers=zeros)]
        self.records += [dataclasses.replace(start, matrix="W+dW")]

    def _add(
        self, update: Updates, step: int, matrix: str, operator: Operator, alive_trials: list[bool]
    ) -> None:
        alive = alive_trials[update.members]
        if not any(alive):
            return
        few = (
            operator.device.type == "cpu"
            and math.prod(operator.shape) * min(operator.shape[-2:]) <= FEW
        )
        start = torch.Generator().manual_seed(0)  # the same in a run that was stopped and went on
        found = summary(
            operator, rtol=RTOL, effective_rank=matrix == "dW", exact=few, generator=start
        )
        sr = found.stable_rank
        # A value that is not known to the width asked for is not recorded; its bounds are.
        value = torch.where(torch.as_tensor(sr.met), torch.as_tensor(sr.value), torch.nan)
        norms = (found.spectral_norm, found.frobenius_norm, found.effective_rank)
        numbers = torch.stack(
            [
                torch.as_tensor(x).double().cpu().expand(len(update.layers), len(alive))
                for x in (value, sr.lower, sr.upper, *norms)
            ]
        )
        m, n = operator.shape[-2:]
        self.records.append(
            Record(step, matrix, update.layers, m, n, update.members.start, alive, numbers)
        )
