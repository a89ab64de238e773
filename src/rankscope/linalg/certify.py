"""Proof that sigma_1 <= tau: tau^2 I - M^T M has a Cholesky factor: docs/math.md, (16) and (17).

Letters: N matrices of a flat batch, m rows, n columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.frobenius import gram
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma


def certified_bound(op: Operator, tau: Tensor, *, magnitude: Tensor) -> Tensor:
    """(N,) float64 CPU: an upper bound on sigma_1, proved, a little above tau; infinity where there is no factor.

    op has a flat batch (N,); tau, magnitude (N,) float64 CPU, the latter the operator's `magnitude()`. No random
    number and no convergence is trusted here: the rounding of every operation is bounded a priori.
    """
    if op.shape[-2] < op.shape[-1]:
        op = op.mT
    m, n = op.shape[-2:]
    H = gram(op).neg_()
    diagonal = H.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(tau.square()[..., None].to(H.device))
    failed = (torch.linalg.cholesky_ex(H)[1] != 0).cpu()
    square = (
        tau.square() * (1 + gamma(2))
        + gamma(n + 2) * diagonal.clamp(min=0).sum(-1).cpu()
        + gamma(m + 2) * magnitude**2
    )
    return torch.where(failed, torch.inf, square.sqrt() + formation_error(op) * magnitude)


def formation_error(op: Operator) -> float:
    """What rounding adds when rows of M are formed in float64, in Frobenius norm, relative to its
    magnitude."""
    return gamma(sum(min(leaf.shape[-2:]) for leaf in op.leaves) + 8)
