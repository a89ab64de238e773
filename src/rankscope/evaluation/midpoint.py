"""The midpoint of two trained updates of one base, and the similarity of their features.

Letters: N rows, d, e widths of pooled features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.evaluation.pack import Edited
from rankscope.evaluation.trained import Trained
from rankscope.linalg import Dense, LowRank, Operator

_HALF = torch.tensor(0.5, dtype=torch.float64)


@dataclass(frozen=True)
class Half:
    """Half of each update and of the head, and the whole ``rest``, in float32."""

    updates: Mapping[str, Operator]
    head: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]

    @classmethod
    def of(cls, trained: Trained) -> Half:
        updates = {
            name: dW.scaled(_HALF) if isinstance(dW, LowRank) else Dense(dW.to_dense().float() / 2)
            for name, dW in trained.updates.items()
        }
        return cls(updates, {key: x / 2 for key, x in trained.head.items()}, trained.rest)


def halfway_rest(a: Half, b: Half, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of what else training changed; ``base`` holds the pretrained parameters."""
    return {
        key: (a.rest.get(key, base[key]) + b.rest.get(key, base[key])) / 2
        for key in sorted({*a.rest, *b.rest})
    }


def halfway(a: Half, b: Half, rest: Mapping[str, Tensor]) -> Edited:
    """W + (dW_a + dW_b) / 2, with the mean of both heads and this ``rest``."""
    updates = {
        name: a.updates[name] + b.updates[name]
        if name in a.updates and name in b.updates
        else (a.updates.get(name) or b.updates[name])
        for name in {**a.updates, **b.updates}
    }
    head = {key: x + b.head[key] for key, x in a.head.items()}
    return Edited(Trained("midpoint", {}, head, rest), updates)


def linear_cka(X: Tensor, Y: Tensor) -> float:
    """Linear centred kernel alignment in [0, 1] of features (N, d) and (N, e) of the same rows:
    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F), columns centred (Kornblith et al. 2019, ICML). NaN
    where some feature is not finite, or all rows of one side have the same."""
    X, Y = (Z.double() - Z.double().mean(0) for Z in (X, Y))
    norms = [torch.linalg.matrix_norm(Z.mT @ Z) for Z in (X, Y)]
    shared = torch.linalg.matrix_norm(Y.mT @ X).square()
    return float(shared / (norms[0] * norms[1]))
