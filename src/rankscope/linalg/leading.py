"""The leading singular directions of a matrix: all from an eigendecomposition, or a few by block
Lanczos where that costs less; and a change of weights projected on them. docs/math.md, (25).

Golub, Luk and Overton 1981 (ACM TOMS 7, 149-169), from a random block as in Musco and Musco 2015
(arXiv 1504.05477). Letters: m rows, n columns, p = min(m, n), k directions wanted, b columns of a
block, d of the whole basis."""

from __future__ import annotations

import torch
from torch import Tensor

MORE = 8  # columns of a block beyond k: a cluster at sigma_k converges sooner
LARGEST = 0.5  # share of p that the basis may reach
SETTLED = 1e-7  # share of the energy left by which the last block may change what is held


def is_cheaper(p: int, k: int) -> bool:
    """Whether a basis of four blocks is small beside a matrix with that shorter side."""
    return 4 * (k + MORE) <= LARGEST * p


def leading(M: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """sigma_1 .. sigma_k, descending, and their singular vectors on M's shorter side (p, k).

    M (m, n) float64. The values are Ritz values: too large by rounding at most. None where the
    basis reached half of p before the energy of k directions settled: compute all directions then.
    Check what is computed from the directions; nothing here proves that none was missed.
    """
    A = M.mT if M.shape[0] < M.shape[1] else M  # (max, p)
    size = float(A.abs().max())
    if not 1e-100 < size < 1e100:  # energies would leave float64's range
        found = leading(A / size, k) if 0 < size < float("inf") else None
        return None if found is None else (found[0] * size, found[1])
    p, b = A.shape[1], k + MORE
    whole = float(torch.linalg.vector_norm(A)) ** 2
    start = torch.randn(p, b, dtype=A.dtype, generator=torch.Generator().manual_seed(0))
    block = torch.linalg.qr(start.to(A.device))[0]
    V, image, before = block.new_empty(p, 0), A.new_empty(A.shape[0], 0), -1.0
    while V.shape[1] + b <= LARGEST * p:
        V = torch.cat([V, block], 1)  # (p, d)
        new = A @ block
        image = torch.cat([image, new], 1)  # A V (max, d)
        energy, X = torch.linalg.eigh(image.mT @ image)
        energy = energy.flip(-1)[:k].clamp(min=0)
        held = float(energy.sum())
        if held - before <= SETTLED * max(whole - held, whole * torch.finfo(A.dtype).eps):
            return energy.sqrt(), V @ X.flip(-1)[:, :k]
        before = held
        block = A.mT @ new
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            block = block - V @ (V.mT @ block)
        block = torch.linalg.qr(block)[0]
        block = torch.linalg.qr(block - V @ (V.mT @ block))[0]
    return None


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
    """The same for k directions, where that is cheaper and converges; else None."""
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
