"""The variants of one trained update, and their measurements.

Letters: m rows, n columns, L layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.interventions.editor import Editor
from rankscope.interventions.settings import ALL, Variant
from rankscope.linalg import Dense, LowRank, stable_rank, summary

RTOL = 1e-3  # relative width of the bounds on a stable rank, as in training


class Edits:
    """The variants of one trained update. Each layer is decomposed once.

    Args:
        updates: dW (m, n) by layer.  base: W (m, n) of the same layers.
        chosen: the layers that are edited; the others stay as trained.
        name: of the trained update; it seeds the random draws.
    """

    def __init__(
        self,
        updates: Mapping[str, LowRank | Dense],
        base: Mapping[str, Tensor],
        *,
        chosen: Collection[str],
        name: str,
    ) -> None:
        self.updates, self.base, self.chosen, self.name = updates, base, set(chosen), name
        self._editors = {layer: Editor(updates[layer], base[layer]) for layer in updates}

    def possible(self, variant: Variant) -> bool:
        """Whether each edited layer has enough directions for this edit. Removing or keeping all of
        them does not count as an edit."""
        most = {"top": -1, "without_top": -1, "flat": 0}.get(variant.family)
        edited = self._edited(variant)
        if most is None or not edited:
            return bool(edited)
        return all(variant.level <= self._editors[layer].p + most for layer in edited)

    def is_own(self, variant: Variant) -> bool:
        """Whether this edit leaves every update as trained."""
        return all(
            self._editors[layer].leaves(variant.family, variant.level)
            for layer in self._edited(variant)
        )

    def make(self, variant: Variant) -> dict[str, LowRank | Dense]:
        """dW of every layer under this edit; the trained update itself if unchanged."""
        edited = self._edited(variant)
        return {
            layer: self._edit(layer, variant) if layer in edited else update
            for layer, update in self.updates.items()
        }

    def _edited(self, variant: Variant) -> list[str]:
        return [
            layer
            for layer in self.updates
            if layer in self.chosen and variant.scope in (ALL, layer)
        ]

    def _edit(self, layer: str, variant: Variant) -> LowRank | Dense:
        editor, level = self._editors[layer], variant.level
        if editor.leaves(variant.family, level):
            return self.updates[layer]
        if variant.family == "restore":
            return editor.restore()
        if variant.family == "random":
            return editor.random(self._generator(layer, variant.draw))
        if variant.family in ("top", "without_top", "flat"):
            return getattr(editor, variant.family)(int(level))
        return getattr(editor, variant.family)(level)

    def _generator(self, layer: str, draw: int) -> torch.Generator:
        """A generator per trial, layer and draw, which gives the same numbers each time."""
        seed = hashlib.sha256(f"{self.name}\n{layer}\n{draw}".encode()).digest()[:8]
        return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)


@dataclass(frozen=True)
class Measured:
    """Medians over the measured layers: ``log_drift`` of log(sr(W + dW) / sr(W)), ``rho`` of
    sigma_1(dW) / sigma_1(W), ``size`` of ||dW||_F / ||W||_F. NaN if a bound on a stable rank was
    not met; ``unmet`` counts these layers."""

    log_drift: float
    rho: float
    size: float
    unmet: int


class Measure:
    """Drifts of edited updates against W, over some layers, as training records them."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        self.base = base
        self._start = torch.Generator()
        facts = [
            summary(Dense(W.double()), rtol=RTOL, generator=self._fresh()) for W in base.values()
        ]
        self._W = {
            layer: (
                float(f.stable_rank.value) if f.stable_rank.met else torch.nan,
                float(f.spectral_norm),
                float(f.frobenius_norm),
            )
            for layer, f in zip(base, facts, strict=True)
        }

    def __call__(self, updates: Mapping[str, LowRank | Dense]) -> Measured:
        drifts, rhos, sizes, unmet = [], [], [], 0
        for layer, W in self.base.items():
            sr, sigma, norm = self._W[layer]
            dW = updates[layer]
            own = summary(dW, rtol=RTOL, generator=self._fresh())
            found = stable_rank(Dense(W.double()) + dW, RTOL, generator=self._fresh())
            unmet += not bool(found.met)
            drifts.append(torch.tensor(float(found.value) / sr).log() if found.met else torch.nan)
            rhos.append(float(own.spectral_norm) / sigma)
            sizes.append(float(own.frobenius_norm) / norm)
        drift, rho, size = (
            float(torch.tensor(x, dtype=torch.float64).quantile(0.5)) for x in (drifts, rhos, sizes)
        )
        return Measured(drift, rho, size, unmet)

    def _fresh(self) -> torch.Generator:
        return self._start.manual_seed(0)
