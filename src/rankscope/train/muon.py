"""Muon: momentum, orthogonalised (its singular values moved near 1), for the matrices of a model.

K. Jordan et al. 2024 (kellerjordan.github.io/posts/muon), as ``torch.optim.Muon`` computes it. In
a pack the factors A and B are orthogonalised each by itself, all matrices of one shape at once;
heads, biases, norms and embeddings take AdamW at the same rate. Letters: S matrices of one shape, k
trials of a bucket, m rows, n columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rankscope.train.optimizer import FlatParams, Kind, PackedAdamW, widest

MOMENTUM = 0.95
_COEFFICIENTS, _STEPS, _SMALLEST = (3.4445, -4.7750, 2.0315), 5, 1e-7  # torch.optim.Muon's


def orthogonalized(G: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """U S V^T -> U S' V^T with S' between about 0.5 and 1.2, by Newton and Schulz's iteration.
    (..., m, n), as torch does in bfloat16. Rows and columns of zeros stay zeros."""
    a, b, c = _COEFFICIENTS
    X = G.to(dtype).flatten(0, -3)
    is_tall = G.shape[-2] > G.shape[-1]
    X = X.mT if is_tall else X
    X = X / torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True).clamp(min=_SMALLEST)
    for _ in range(_STEPS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return (X.mT if is_tall else X).reshape(G.shape)


class PackedMuon(PackedAdamW):
    """Args:
    ranks: of each trial; a column of B that is padding takes no part in its shape. None: no
        adapters.
    """

    def __init__(
        self, params: Sequence[FlatParams], *, ranks: Sequence[int | None], **settings: Any
    ) -> None:
        super().__init__(params, **settings)
        self.ranks = list(ranks)

    @torch.no_grad()
    def step(self, *, schedule: float, alive: Tensor) -> Tensor:
        """As ``PackedAdamW.step``."""
        alive = super().step(schedule=schedule, alive=alive)
        for group, mean in zip(self.params, self.means, strict=True):
            self._orthogonal(group, mean, schedule, alive[group.members])
        return alive

    def _orthogonal(self, group: FlatParams, mean: Tensor, schedule: float, alive: Tensor) -> None:
        """The matrices of one bucket, those of one shape together."""
        k = len(alive)
        triples = zip(
            group.kinds,
            group.parameters,
            group.views(group.gradients),
            group.views(mean),
            strict=True,
        )
        shapes: dict[tuple[Kind, int, int], list[tuple[Tensor, ...]]] = {}
        for kind, *tensors in triples:
            if kind in ("matrix", "B"):
                m, n = tensors[0].shape[-2:]
                shapes.setdefault((kind, m, n), []).append(
                    tuple(tensor.data.view(k, m, n) for tensor in tensors)
                )
        own = slice(group.members.start, group.members.stop)
        rates = torch.tensor(
            self.learning_rates[own], dtype=widest(mean.device), device=mean.device
        )
        rates = rates * schedule
        for (kind, m, n), found in shapes.items():
            values, gradients, means = (list(each) for each in zip(*found, strict=True))
            G = torch.stack(gradients)  # (S, k, m, n)
            momentum = torch.stack(means).lerp_(G, 1 - MOMENTUM)
            update = orthogonalized(G.lerp(momentum, MOMENTUM)).to(G.dtype)
            columns = [rank if kind == "B" and rank else n for rank in self.ranks[own]]
            sizes = [math.sqrt(max(1.0, m / column)) for column in columns]
            rate = rates[:, None, None]
            taken = (rates * torch.tensor(sizes).to(rates))[:, None, None]
            is_alive = alive[:, None, None]
            for s, p in enumerate(values):
                new = p * (1 - rate * self.weight_decay).to(p) - taken.to(p) * update[s]
                p.copy_(torch.where(is_alive, new, p))
                means[s].copy_(torch.where(is_alive, momentum[s], means[s]))
