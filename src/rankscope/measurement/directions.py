"""The leading directions of a change of weights, and its projection on them as factors.
docs/math.md, section 9.

Letters: m rows, n columns, k kept rank, p = min(m, n).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.leading import is_cheaper, leading


def all_directions(tuned: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dW (m, n), its singular values (p,) descending and the singular vectors (m or n, p) of its
    shorter side, float64: from the eigenvalues of dW dW^T or dW^T dW.

    Values below sqrt(u) sigma_1 are rounding; no error is taken from them.
    """
    dW = tuned.double() - weight.double()
    G = dW @ dW.mT if dW.shape[0] <= dW.shape[1] else dW.mT @ dW
    energy, Q = torch.linalg.eigh(G)
    return dW, energy.flip(-1).clamp(min=0).sqrt(), Q.flip(-1)


def leading_directions(
    tuned: Tensor, weight: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The same of k directions only, where that is cheaper and succeeds."""
    if not is_cheaper(min(tuned.shape), k):
        return None
    dW = tuned.double() - weight.double()
    found = leading(dW, k)
    return None if found is None else (dW, *found)


def projected(dW: Tensor, Q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """B A = Q_k Q_k^T dW or dW Q_k Q_k^T in float32, columns of B as long as rows of A."""
    Q = Q[:, :k]
    if dW.shape[0] <= dW.shape[1]:
        B, A = Q, Q.mT @ dW
        root = torch.linalg.vector_norm(A, dim=1)
    else:
        B, A = dW @ Q, Q.mT
        root = 1 / torch.linalg.vector_norm(B, dim=0).clamp(min=torch.finfo(B.dtype).tiny)
    root = root.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return (B * root).float().contiguous(), (A / root[:, None]).float().contiguous()
