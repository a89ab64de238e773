"""sigma_1 from M^T M in float64, certainly: a Cholesky factor of tau^2 I - M^T M proves
sigma_1 <= tau, and its eigenvalues give sigma_1 itself. docs/math.md, (16) to (17b).

Letters: N matrices of a flat batch, m rows, n columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.frobenius import formation_error, gram
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma

TOGETHER = 2**20  # entries of the Gram matrices that are factored together


def certified_bound(op: Operator, tau: Tensor, *, magnitude: Tensor) -> Tensor:
    """(N,) float64 CPU: an upper bound on sigma_1, proved, a little above tau; infinity where there
    is no factor.

    op has a flat batch (N,); tau, magnitude (N,) float64 CPU, the latter the operator's
    `magnitude()`. No random number and no convergence is trusted here: the rounding of every
    operation is bounded a priori.
    """
    if op.shape[-2] < op.shape[-1]:
        op = op.mT
    m, n = op.shape[-2:]
    failed, trace = [], []
    for index in torch.arange(len(tau)).split(max(1, TOGETHER // n**2)):
        H = gram(op.select(index, op.batch_shape)).neg_()
        diagonal = H.diagonal(dim1=-2, dim2=-1)
        diagonal.add_(tau[index].square()[:, None].to(H.device))
        trace.append(diagonal.clamp(min=0).sum(-1).cpu())
        failed.append((torch.linalg.cholesky_ex(H)[1] != 0).cpu())
    square = (
        tau.square() * (1 + gamma(2))
        + gamma(n + 2) * torch.cat(trace)
        + gamma(m + 2) * magnitude**2
    )
    return torch.where(
        torch.cat(failed), torch.inf, square.sqrt() + formation_error(op) * magnitude
    )


def by_eigenvalues(op: Operator, *, magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigma_1 (N,) float64 CPU, a lower and an upper bound on it, certain, from the
    largest eigenvalue of M^T M.

    op and magnitude as for `certified_bound`. Costs as much for any spectrum: docs/math.md, (17b).
    """
    if op.shape[-2] < op.shape[-1]:
        op = op.mT
    m, n = op.shape[-2:]
    tops, traces = [], []
    for index in torch.arange(len(magnitude)).split(max(1, TOGETHER // n**2)):
        G = torch.nan_to_num(gram(op.select(index, op.batch_shape)))
        traces.append(G.diagonal(dim1=-2, dim2=-1).sum(-1).cpu())
        tops.append(torch.linalg.eigvalsh(G, UPLO="L")[:, -1].cpu())
    square = torch.cat(tops).clamp(min=0)
    error = gamma(8 * n) * torch.cat(traces) + gamma(m + 2) * magnitude**2
    formed = formation_error(op) * magnitude
    lower = (square * (1 - gamma(2)) - error).clamp(min=0).sqrt() - formed
    return square.sqrt(), lower.clamp(min=0), (square * (1 + gamma(2)) + error).sqrt() + formed
