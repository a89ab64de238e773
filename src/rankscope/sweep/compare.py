"""Compares updates of LoRA and full fine-tuning, layer by layer (H4; docs/math.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from rankscope.analysis.selection import chosen
from rankscope.analysis.settings import labelled
from rankscope.linalg import (
    LowRank,
    Operator,
    captured_energy,
    intruder_dimensions,
    principal_angles,
    singular_subspaces,
)
from rankscope.store.store import Store
from rankscope.store.trial_dir import SPECTRA
from rankscope.study.trial import ALL_LINEAR
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.midpoints import midpoints
from rankscope.weights import Matrix, read

K = 8  # leading singular directions compared; fewer where the rank is smaller
TOP = 10  # singular vectors of W + dW that may be intruders (Shuttleworth et al. 2024)


@dataclass
class Update:
    """dW of one site at a trial's best step."""

    operator: Operator

    @cached_property
    def dense(self) -> Tensor:
        return self.operator.to_dense()

    @cached_property
    def subspaces(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (m, k), sigma (k,), V (n, k)"""
        shape = (
            self.operator.A.shape[-2:]
            if isinstance(self.operator, LowRank)
            else self.operator.shape
        )
        return singular_subspaces(self.operator, min(K, *shape))


@dataclass(frozen=True)
class Comparison:
    """A trial, and the trials that it is compared with."""

    model: str
    reference: str
    trials: list[str]


def comparisons(store: Store) -> list[Comparison]:
    """All pairs of trials at their configurations' chosen learning rates that H4 asks for, within a
    model, task and setting: LoRA of every seed with full fine-tunes of every seed, and full
    fine-tunes, and LoRA trials of one configuration, with those of later seeds."""
    finished = store.trials()
    trials = chosen(labelled(finished[finished["budget"].eq(1)]))
    trials = trials.assign(trial=trials["source"])
    found: list[Comparison] = []
    for (_, _, model), group in trials.groupby(["model", "task", "base"]):
        lora, full = (group[group["method"].eq(method)] for method in ("lora", "full"))
        if full.empty or lora.empty:
            continue
        for reference, seed in zip(full["trial"], full["seed"], strict=True):
            later = full.loc[full["seed"].gt(seed), "trial"]
            found.append(Comparison(str(model), reference, [*lora["trial"], *later]))
        for _, same in lora.groupby(["rank", "scaling"]):
            for reference, seed in zip(same["trial"], same["seed"], strict=True):
                later = same.loc[same["seed"].gt(seed), "trial"]
                if len(later):
                    found.append(Comparison(str(model), reference, list(later)))
    return _each_once(found)


def _each_once(found: Sequence[Comparison]) -> list[Comparison]:
    """Removes repeated pairs: a full fine-tune may belong to several settings."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for one in found:
        new = [trial for trial in one.trials if (trial, one.reference) not in seen]
        seen |= {(trial, one.reference) for trial in new}
        if new or not one.trials:
            kept.append(Comparison(one.model, one.reference, new))
    return kept


def compare(
    store: Store,
    found: Sequence[Comparison],
    *,
    base_of: Callable[[str], str],
    inputs: StudyInputs | None = None,
    progress: Callable[[float], None] = lambda _: None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the store's comparison.

    Args:
        base_of: the path of a model, by its name.
        inputs: has the rows for loss barriers; None: only the barriers that are already known.
        progress: called with 1 after each trial."""
    rows: list[dict[str, object]] = []
    for one in found:
        base = base_of(one.model)
        reference, weights = updates(store, one.reference, base=base)
        intruders = {
            layer: _intruders(weights[layer], update) for layer, update in reference.items()
        }
        for trial in one.trials:
            for layer, update in updates(store, trial, base=base)[0].items():
                row: dict[str, object] = {
                    "trial": trial,
                    "reference": one.reference,
                    "layer": layer,
                }
                row |= against(update, reference[layer], W=weights[layer])
                row["intruders_lora"] = _intruders(weights[layer], update)
                rows.append(row | {"intruders_full": intruders[layer]})
            progress(1)
    table = pd.DataFrame(rows)
    if len(table):
        pairs = [(trial, one.reference) for one in found for trial in one.trials]
        halfway = midpoints(store, pairs, inputs, say=say)
        table = table.merge(halfway, on=["trial", "reference"], how="left")
    store.write_comparison(table)


def updates(
    store: Store, trial_id: str, *, base: str
) -> tuple[dict[str, Update], dict[str, Tensor]]:
    """dW of each adapted layer from the trial's best weights, with W (m, n) float64."""
    folder = store.folder(trial_id, weights=True)
    targets = folder.trial()["target_modules"]
    if targets == [ALL_LINEAR]:
        layers = pd.read_parquet(folder.path / SPECTRA, columns=["layer"])["layer"]
        targets = list(layers.unique())
    sites = "|".join(map(re.escape, targets))
    found: dict[str, Update] = {}
    weights: dict[str, Tensor] = {}
    for one in read(folder.path / "best", base=base, layers=re.compile(rf"(^|\.)({sites})$")):
        if isinstance(one, Matrix) and one.operator is not None:
            if one.matrix == "dW":
                found[one.layer] = Update(one.operator)
            elif one.matrix == "W":
                weights[one.layer] = one.operator.to_dense()
    return found, weights


def against(lora: Update, full: Update, *, W: Tensor) -> dict[str, float | int]:
    """Compares two updates of one layer `W` (m, n); NaN if one of them is zero."""
    norms = [torch.linalg.matrix_norm(update.dense) for update in (lora, full)]
    if min(norms) == 0:
        return {"k": 0, **dict.fromkeys(_NUMBERS, float("nan"))}
    U, _, V = lora.subspaces
    k = U.shape[-1]
    R, _, S = full.subspaces
    left, right = (
        principal_angles(U, R[:, :k]),
        principal_angles(V, S[:, :k]),
    )  # (k,) ascending, radians
    apart = torch.linalg.matrix_norm(lora.dense - full.dense)
    numbers = (
        captured_energy(lora.operator, full.dense, k),
        (lora.dense * full.dense).sum() / (norms[0] * norms[1]),
        (U.mT @ R[:, :k]).square().sum() / k,  # mean squared cosine of the principal angles
        (V.mT @ S[:, :k]).square().sum() / k,
        apart / norms[1],
        norms[0] / norms[1],
        apart / torch.linalg.matrix_norm(W + full.dense),  # of W + dW to W_FT, beside ||W_FT||
        *(math.degrees(float(angle)) for angle in (left[0], left[-1], right[0], right[-1])),
    )
    return {"k": k, **{name: float(number) for name, number in zip(_NUMBERS, numbers, strict=True)}}


_NUMBERS = (
    "captured_energy",
    "cosine",
    "left_overlap",
    "right_overlap",
    "relative_distance",
    "norm_ratio",
    "weight_distance",
    "left_angle_first",
    "left_angle_last",
    "right_angle_first",
    "right_angle_last",
)


def _intruders(W: Tensor, update: Update) -> int:
    return int(intruder_dimensions(W, update.dense, k=min(TOP, *W.shape)))
