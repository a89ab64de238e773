"""sigma_1 of an operator by Golub-Kahan-Lanczos with full reorthogonalisation: docs/math.md, (9) to (15).

The bidiagonalisation is run in its Gram form, T_k = V^T M^T M V (tridiagonal, = B_k^T B_k): only sigma_1 is
asked of it, for which nothing is lost, and each row of M then comes from memory once per step instead of
twice.

Letters: N matrices of a flat batch, m rows, n columns, k steps, h rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, prod
from statistics import NormalDist

import torch
from torch import Tensor

from rankscope.linalg.operator import Operator
from rankscope.linalg.tridiagonal import Tridiagonal

FUSED = 2**22  # entries of a single matrix from which M and M^T are applied block by block of rows
STEPS = 1024  # the most that are taken; bounds that are wider than asked are then returned as they are
HEIGHT = 2**19  # entries of such a block: read from memory once, from cache the second time


@dataclass(frozen=True)
class Ritz:
    """The outcome of N runs: unit vectors (N, n) float64, upper bounds (N,) float64 on sigma_1, whether each
    is certain and whether it met `rtol` (N,) bool, the number of products M x and M^T x, and whether
    `op.dtype` is too narrow."""

    vectors: Tensor
    upper: Tensor
    certain: Tensor
    met: Tensor
    products: int
    starved: bool


def largest(
    op: Operator,
    *,
    frobenius: Tensor,
    allowance: Tensor,
    ignore: Tensor,
    rtol: float,
    confidence: float,
    generator: torch.Generator,
    warm: Tensor | None = None,
) -> Ritz:
    """Runs until upper <= (1 + rtol) times the Ritz value for every matrix, or until the Krylov space is all
    there is.

    frobenius, allowance (N,) float64 CPU: ||M||_F, and what rounding in op.dtype may add to sigma_1; ignore
    (N,) bool: matrices that nothing is asked of. warm (*batch, n). Where the allowance alone is too much for
    `rtol`, a run in float32 ends at once, starved, and one in float64 settles for bounds four allowances
    apart.
    """
    v, log_target = _start(op, confidence, generator, warm)
    N, n, limit = prod(op.batch_shape), op.shape[-1], min(*op.shape[-2:], STEPS)
    normal, checks = _normal(op), _checks(op)
    V = torch.empty(N, min(limit, 24), n, dtype=op.dtype, device=op.device)
    a: list[Tensor] = []
    b: list[Tensor] = []
    steps = ignore.long()  # 0: still running
    starved = False
    for k in range(1, limit + 1):
        if k > V.shape[1]:
            V = torch.cat([V, torch.empty_like(V)], dim=1)
        V[:, k - 1] = v
        w, square = normal(v)
        w = _without(_without(w, V[:, :k]), V[:, :k])
        size = torch.linalg.vector_norm(w, dim=-1)
        a.append(square)
        b.append(size)
        v = torch.where(size[:, None] > 0, w / size[:, None], 0.0)
        if k in checks or k == limit:
            all_k = torch.full((N,), k)
            T = Tridiagonal(_host(a), _host(b), all_k, frobenius, allowance, log_target)
            inside, tight = T.within(rtol, least=4.0 if op.dtype == torch.float64 else 0.0)
            steps = torch.where((steps == 0) & inside, all_k, steps)
            starved = op.dtype != torch.float64 and bool((tight & (steps == 0)).any())
            if starved or bool((steps > 0).all()):
                break
    met = steps > 0
    T = Tridiagonal(T.a, T.b, torch.where(met, steps, all_k), frobenius, allowance, log_target)
    y = T.top()[1].to(V)[:, None, :]  # (N, 1, k)
    vectors = torch.nn.functional.normalize((y @ V[:, :k])[:, 0].double(), dim=-1)
    upper, certain = T.upper(rtol)
    return Ritz(vectors, upper, certain, met, 2 * k, starved)


def _start(
    op: Operator, confidence: float, generator: torch.Generator, warm: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Unit start vectors (N, n) and log(||g|| / delta) (N,): docs/math.md, (11), and (15) with a warm start.

    One Gaussian g for the whole batch, so that a matrix is measured alike alone and among others.
    """
    N, n = prod(op.batch_shape), op.shape[-1]
    g = torch.randn(n, dtype=torch.float64, generator=generator, device=generator.device).to(op.device)
    g = g.expand(N, n)
    if warm is not None:
        known = warm.to(g).expand(*op.batch_shape, n).reshape(N, n)
        g = g + torch.nn.functional.normalize(known, dim=-1) * n**0.5
    size = torch.linalg.vector_norm(g, dim=-1)
    delta = NormalDist().inv_cdf(1 - confidence / 2)
    return (g / size[:, None]).to(op.dtype), size.log().cpu() - log(delta)


def _normal(op: Operator) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The map v (N, n) -> M^T M v (N, n), ||M v||^2 (N,); rows in blocks where M is single and large."""
    batch, (m, n) = op.batch_shape, op.shape[-2:]
    height = max(1, HEIGHT // n) if not batch and m * n >= FUSED else m
    blocks = [op.rows(i, min(i + height, m)) for i in range(0, m, height)]
    pairs = [(block, block.mT) for block in blocks]

    def apply(v: Tensor) -> tuple[Tensor, Tensor]:
        x = v.view(*batch, n)
        images, squares = [], []
        for block, transpose in pairs:
            y = block.matvec(x)
            images.append(transpose.matvec(y))
            squares.append(torch.linalg.vector_norm(y, dim=-1).square())
        return sum(images[1:], images[0]).reshape(v.shape), sum(squares[1:], squares[0]).reshape(-1)

    return apply


def _without(w: Tensor, V: Tensor) -> Tensor:
    """w minus its projection on orthonormal rows V: (N, n), (N, k, n) -> (N, n)."""
    return w - ((w[:, None, :] @ V.mT) @ V)[:, 0]


def _checks(op: Operator) -> frozenset[int]:
    """Steps at which the bounds are looked at: rarer where a look costs as much as a step."""
    growth = 1.1 if op.shape[-2] * op.shape[-1] >= FUSED else 1.2
    found, k = set(), 4.0
    while k < min(op.shape[-2:]):
        found.add(int(k))
        k = max(k + 1, k * growth)
    return frozenset(found)


def _host(columns: list[Tensor]) -> Tensor:
    """k tensors (N,) -> (N, k) float64 on the CPU."""
    return torch.stack(columns, dim=1).double().cpu()
