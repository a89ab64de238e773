"""Edits of one layer's update dW through its singular value decomposition. docs/math.md, section 8.

An edit keeps the update low rank: it changes singular values or vectors of the r x r core, or
removes a few singular directions of W + dW. So K edits of one update are K adapters and form one
pack.

Letters: m rows, n columns, r rank of the update, p = min(m, n, r), k leading directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.linalg import LowRank, Operator, singular_subspaces

_STEPS = 100  # bisection steps: more than the 53 bits of float64, wherever it starts


class EditedUpdate(LowRank):
    """An edited update: s B A, float64, with s = 1."""

    def save_pretrained(self, folder: str | Path, *, layer: str, base: str | None = None) -> None:
        """Writes it as a PEFT adapter of one layer, ``layer`` its name in the model, ``base`` what
        ``from_pretrained`` takes. Weights are rounded to float32.
        """
        save_edited(folder, {layer: self}, base=base)


class Editor:
    """All edits of one update; its decompositions are computed once. Arguments as in ``edit``."""

    def __init__(self, update: Operator, base: Tensor | None = None) -> None:
        if base is not None and base.shape != update.shape:
            raise ValueError(
                f"edit: expected a base of the update's shape {tuple(update.shape)}; found "
                f"{tuple(base.shape)}"
            )
        self.update, self._base = update, base

    @cached_property
    def p(self) -> int:
        """The largest number of singular directions of the update."""
        limit = min(self.update.shape[-2:])
        return min(limit, self.update.A.shape[-2]) if isinstance(self.update, LowRank) else limit

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (m, p), sigma (p,), V (n, p) of the update."""
        return singular_subspaces(self.update, self.p)

    @cached_property
    def base_values(self) -> Tensor:
        """The singular values of W."""
        return torch.linalg.svdvals(self._needed("restore").double())

    def scale(self, t: float) -> EditedUpdate:
        B, A = self._factors
        return EditedUpdate(B=B * t, A=A)

    def cap(self, c: float) -> EditedUpdate:
        self._needed("cap")
        if c < 0:
            raise ValueError(f"edit: cap must be at least 0, a share of sigma_1(W); found {c}")
        U, sigma, V = self.svd
        return _product(U, sigma.clamp(max=c * float(self.base_values[0])), V)

    def restore(self) -> EditedUpdate:
        """Caps the leading singular values of W + dW at the level that restores W's stable rank."""
        return self._restored[0]

    @cached_property
    def _restored(self) -> tuple[EditedUpdate, bool]:
        """The result of ``restore``, and whether anything was capped."""
        W = self._needed("restore").double()
        target = float((self.base_values / self.base_values[0]).square().sum())
        U, sigma, Vh = torch.linalg.svd(W + self.update.to_dense().double(), full_matrices=False)
        level = _level_of(sigma, target=target)
        k = int((sigma > level).sum())
        B, A = self._factors
        if k:
            B = torch.cat([B, -U[:, :k] * (sigma[:k] - level)], dim=1)
            A = torch.cat([A, Vh[:k]], dim=0)
        return EditedUpdate(B=B, A=A), k > 0

    def leaves(self, family: str, level: float) -> bool:
        """Whether this edit leaves dW as it is: scale 1, and caps that no singular value
        exceeds."""
        if family == "restore":
            return not self._restored[1]
        if family == "cap":
            return bool(self.svd[1][0] <= level * self.base_values[0])
        return family == "scale" and level == 1

    def top(self, k: int) -> EditedUpdate:
        U, sigma, V = self._leading("top", k)
        return _product(U, sigma, V)

    def without_top(self, k: int) -> EditedUpdate:
        self._leading("without_top", k)
        U, sigma, V = self.svd
        kept = sigma.clone()
        kept[:k] = 0
        return _product(U, kept, V)

    def flat(self, k: int) -> EditedUpdate:
        U, _, V = self._leading("flat", k)
        equal = torch.linalg.vector_norm(self.svd[1]) / k**0.5
        return _product(U, equal.expand(k), V)

    def random(self, generator: torch.Generator) -> EditedUpdate:
        U, sigma, V = self.svd
        return _product(_haar(len(U), self.p, generator), sigma, _haar(len(V), self.p, generator))

    def _leading(self, name: str, k: int) -> tuple[Tensor, Tensor, Tensor]:
        if not 1 <= k <= self.p:
            raise ValueError(
                f"edit: {name} must lie in 1 .. {self.p}, this update's directions; found {k}"
            )
        U, sigma, V = self.svd
        return U[:, :k], sigma[:k], V[:, :k]

    def _needed(self, name: str) -> Tensor:
        if self._base is None:
            raise ValueError(f"edit: {name} needs base=, the weight W of this layer")
        return self._base

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """B (m, r) with the scale in it, and A (r, n), float64."""
        if isinstance(self.update, LowRank):
            return self.update.B.double() * self.update.scale, self.update.A.double()
        U, sigma, V = self.svd
        return U * sigma, V.mT


def _level_of(sigma: Tensor, *, target: float) -> float:
    """The largest tau with sum min(sigma, tau)^2 / tau^2 >= target; sigma_1 if that already
    satisfies it.

    The quotient decreases in tau, so bisection finds it.
    """

    def capped(tau: float) -> float:
        return float((sigma / tau).clamp(max=1).square().sum())

    low, high = 0.0, float(sigma[0])
    if capped(high) >= target:
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if capped(middle) >= target else (low, middle)
    return low or high


def _product(U: Tensor, sigma: Tensor, V: Tensor) -> EditedUpdate:
    """U diag(sigma) V^T, with the square root of sigma in both factors, like PEFT."""
    root = sigma.sqrt()
    return EditedUpdate(B=U * root, A=(V * root).mT)


def _haar(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns, uniformly distributed (Mezzadri 2007): QR of a Gaussian, signs of R
    undone."""
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(gaussian)
    return Q * R.diagonal().sign()


def save_edited(
    folder: str | Path,
    updates: Mapping[str, LowRank],
    *,
    base: str | None = None,
    others: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes edited updates, by layer, as a PEFT adapter that plain PEFT opens on the same base.
    Each layer has its own rank, and scale 1; weights are rounded to float32.

    Args:
        others: tensors that are saved in full, by their names in the base model.
        settings: further arguments of ``LoraConfig``.
    """
    from peft import LoraConfig  # slow to import
    from transformers import PreTrainedConfig

    from rankscope.train.peft_adapter import save_adapter

    ranks = {layer: update.A.shape[-2] for layer, update in updates.items()}
    most = max(ranks.values())
    odd = {layer: r for layer, r in ranks.items() if r != most}
    config = LoraConfig(
        **{"base_model_name_or_path": base} | {k: v for k, v in (settings or {}).items() if v},
        inference_mode=True,
        r=most,
        lora_alpha=most,
        rank_pattern=dict(odd),
        alpha_pattern=dict(odd),
        target_modules=list(updates),
    )
    state: dict[str, Tensor] = dict(others or {})
    for layer, update in updates.items():
        state[f"{layer}.lora_A.weight"] = update.A.float().contiguous()
        state[f"{layer}.lora_B.weight"] = (update.B.double() * update.scale).float().contiguous()
    save_adapter(Path(folder), state, config, PreTrainedConfig())  # no names of classes
