"""sigma_1 from M^T M in float64, certainly: a Cholesky factor of tau^2 I - M^T M proves
sigma_1 <= tau, and its eigenvalues give sigma_1 itself. docs/math.md, (16) to (17b).

No random number and no convergence is trusted here: the rounding of every operation is bounded a
priori. Letters: N matrices of a flat batch, m rows, n columns, the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rankscope.linalg.frobenius import gram
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma
from rankscope.linalg.scaled_group import ScaledGroup

TOGETHER = 2**20  # entries of the Gram matrices that are factored together


def certified_bound(group: ScaledGroup, tau: Tensor) -> Tensor:
    """(N,) float64 CPU: an upper bound on sigma_1, proved, a little above tau (N,) float64 CPU;
    infinity where there is no factor."""
    failed, trace = [], []
    for index, H in _grams(group.op):
        diagonal = H.neg_().diagonal(dim1=-2, dim2=-1)
        diagonal.add_(tau[index].square()[:, None].to(H.device))
        trace.append(diagonal.clamp(min=0).sum(-1).cpu())
        failed.append((torch.linalg.cholesky_ex(H)[1] != 0).cpu())
    m, n = _sides(group.op)
    square = tau.square() + gamma(n + 2) * torch.cat(trace) + gamma(m + 2) * group.frobenius**2
    return torch.where(torch.cat(failed), torch.inf, square.sqrt() + group.formation)


def largest_tau(group: ScaledGroup, upper: Tensor) -> Tensor:
    """(N,): the tau whose `certified_bound` is just below `upper` (N,), whatever the trace (n tau^2
    at most); 0 where there is none."""
    m, n = _sides(group.op)
    square = (upper - group.formation).clamp(min=0).square() - gamma(m + 2) * group.frobenius**2
    return (square.clamp(min=0) / (1 + gamma(8) + n * gamma(n + 2))).sqrt()


def by_eigenvalues(group: ScaledGroup) -> tuple[Tensor, Tensor, Tensor]:
    """sigma_1 (N,) float64 CPU, a lower and an upper bound on it, certain, from the largest
    eigenvalue of M^T M. Costs as much for any spectrum."""
    tops, traces = [], []
    for _, H in _grams(group.op):
        G = torch.nan_to_num(H)
        traces.append(G.diagonal(dim1=-2, dim2=-1).sum(-1).cpu())
        tops.append(torch.linalg.eigvalsh(G, UPLO="L")[:, -1].cpu())
    m, n = _sides(group.op)
    square = torch.cat(tops).clamp(min=0)
    error = gamma(8 * n) * torch.cat(traces) + gamma(m + 2) * group.frobenius**2
    lower = (square - error).clamp(min=0).sqrt() - group.formation
    upper = (square + error).sqrt() + group.formation
    return square.sqrt(), lower.clamp(min=0), upper


def _sides(op: Operator) -> tuple[int, int]:
    return max(op.shape[-2:]), min(op.shape[-2:])


def _grams(op: Operator) -> Iterator[tuple[Tensor, Tensor]]:
    """(positions (N',), M^T M or M M^T, whichever is smaller, (N', n, n) float64): all of them."""
    op = op.mT if op.shape[-2] < op.shape[-1] else op
    for index in torch.arange(op.shape[0]).split(max(1, TOGETHER // op.shape[-1] ** 2)):
        yield index, gram(op.select(index, op.batch_shape))
