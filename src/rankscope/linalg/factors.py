"""The exact spectrum of s B A from the r x r core of two QR factorisations: docs/math.md, (8). Float64
throughout.

Letters: m rows, n columns, r rank, p = min(m, r), q = min(n, r), *batch leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.low_rank import LowRank


def core(op: LowRank) -> tuple[Tensor, Tensor]:
    """(C, scale): singular values of s B A are scale times those of C, (*batch, p, q), whose entries are
    near 1."""
    B, size_B = _balanced(op.B.double())
    A, size_A = _balanced(op.A.double())
    R_B = torch.linalg.qr(B, mode="r").R if B.shape[-2] > B.shape[-1] else B  # (*batch, p, r)
    R_A = torch.linalg.qr(A.mT, mode="r").R if A.shape[-1] > A.shape[-2] else A.mT  # (*batch, q, r)
    return R_B @ R_A.mT, size_B * size_A * op.scale.abs()


def singular_values(op: LowRank) -> Tensor:
    """All singular values that can differ from zero, (*batch, min(m, n, r)) float64, descending."""
    C, scale = core(op)
    sigma = torch.linalg.svdvals(torch.nan_to_num(C)) * scale[..., None]
    return sigma.expand(*op.batch_shape, sigma.shape[-1])


def singular_vectors(op: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """U (*batch, m, p'), sigma (*batch, p'), V (*batch, n, p') of s B A, with p' = min(m, n, r)."""
    B, size_B = _balanced(op.B.double())
    A, size_A = _balanced(op.A.double())
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.mT)
    P, sigma, Qh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    scale = (size_B * size_A * op.scale)[..., None]
    U, V = Q_B @ (P * scale.sign()[..., None, :]), Q_A @ Qh.mT
    batch = op.batch_shape
    U, sigma, V = (x.expand(*batch, *x.shape[len(batch) :]) for x in (U, sigma * scale.abs(), V))
    return U, sigma, V


def _balanced(X: Tensor) -> tuple[Tensor, Tensor]:
    """X divided by a power of two near its largest entry, and that power: exact, and no square can
    overflow."""
    top = X.abs().amax((-2, -1))
    _, exponent = torch.frexp(torch.where(top > 0, top, 1.0))
    size = torch.exp2(exponent.double())
    return X / size[..., None, None], size
