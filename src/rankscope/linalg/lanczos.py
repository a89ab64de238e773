"""sigma_1 of an operator by Golub-Kahan-Lanczos with full reorthogonalisation: docs/math.md, (9) to (15).

The bidiagonalisation is run in its Gram form, T_k = V^T M^T M V (tridiagonal, = B_k^T B_k): only sigma_1 is
asked of it, for which nothing is lost, and each row of M then comes from memory once per step instead of twice.

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
HEIGHT = 2**19  # entries of such a block: read from memory once, from cache the second time
STEPS = 1024  # the most that are taken; bounds that are wider than asked are then returned as they are


@dataclass(frozen=True)
class Ritz:
    """The outcome of N runs: unit vectors (N, n) float64, upper bounds (N,) float64 on sigma_1, whether each is
    certain (N,) bool, the number of products M x and M^T x, and whether `op.dtype` is too narrow for the wish."""

    vectors: Tensor
    upper: Tensor
    certain: Tensor
    products: int
    starved: bool


@dataclass(frozen=True)
class Goal:
    """What a run works towards, per matrix (N,) float64 CPU: ||M||_F and what rounding in op.dtype may add to
    sigma_1; for all of them a relative width and a confidence; `ignore` (N,) bool: matrices of no interest."""

    frobenius: Tensor
    allowance: Tensor
    ignore: Tensor
    rtol: float
    confidence: float


class _Run:
    """N recursions at step k: V (N, >= k, n) orthonormal rows, v the next one, a and b the columns of T_k."""

    def __init__(self, op: Operator, start: Tensor) -> None:
        self.op, self.normal, self.v = op, _normal(op), start
        self.V = start.new_empty(len(start), min(*op.shape[-2:], 24), start.shape[1])
        self.a: list[Tensor] = []
        self.b: list[Tensor] = []

    @property
    def k(self) -> int:
        return len(self.a)

    def step(self) -> None:
        """One step of (9)."""
        k = self.k + 1
        if k > self.V.shape[1]:
            self.V = torch.cat([self.V, torch.empty_like(self.V)], dim=1)
        self.V[:, k - 1] = self.v
        w, square = self.normal(self.v)
        w = _without(_without(w, self.V[:, :k]), self.V[:, :k])
        size = torch.linalg.vector_norm(w, dim=-1)
        self.a.append(square)
        self.b.append(size)
        self.v = torch.where(size[:, None] > 0, w / size[:, None], 0.0)

    def vectors(self, y: Tensor) -> Tensor:
        """Unit Ritz vectors (N, n) float64 from coefficients (N, k)."""
        x = (y.to(self.V)[:, None, :] @ self.V[:, : self.k])[:, 0]
        return torch.nn.functional.normalize(x.double(), dim=-1)

    def keep(self, index: Tensor) -> None:
        """Goes on with the matrices at `index` only."""
        index = index.to(self.V.device)
        self.op = self.op.take(index)
        self.normal = _normal(self.op)
        self.V, self.v = self.V[index], self.v[index]
        self.a, self.b = [x[index] for x in self.a], [x[index] for x in self.b]


def largest(op: Operator, goal: Goal, *, generator: torch.Generator, warm: Tensor | None = None) -> Ritz:
    """Runs until upper <= (1 + rtol) times the Ritz value for every matrix, or the Krylov space is all there is.

    warm (*batch, n). Where the allowance alone is too much for `rtol`, a run in float32 ends at once, starved, and
    one in float64 settles for bounds four allowances apart.
    """
    start, log_target = _start(op, goal.confidence, generator, warm)
    N, limit, checks = len(start), min(*op.shape[-2:], STEPS), _checks(op)
    least = 4.0 if op.dtype == torch.float64 else 0.0
    run = _Run(op, start)
    running = torch.arange(N)
    steps = goal.ignore.long()  # of those running; 0: not there yet
    vectors = torch.zeros(N, op.shape[-1], dtype=torch.float64, device=op.device)
    upper, certain = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.bool)
    while True:
        run.step()
        if run.k not in checks and run.k < limit:
            continue
        a, b, now = _host(run.a), _host(run.b), torch.full((len(running),), run.k)
        known = goal.frobenius[running], goal.allowance[running], log_target[running]
        inside, tight = Tridiagonal(a, b, now, *known).within(goal.rtol, least=least)
        steps = torch.where((steps == 0) & inside, now, steps)
        starved = op.dtype != torch.float64 and bool((tight & (steps == 0)).any())
        over = starved or run.k == limit or bool((steps > 0).all())
        done = (steps > 0) | over
        if over or (len(op.batch_shape) == 1 and 2 * int(done.sum()) >= len(running)):
            T = Tridiagonal(a, b, torch.where(steps > 0, steps, now), *known)
            found, sure = T.upper(goal.rtol)
            x, which = run.vectors(T.top()[1]), running[done]
            vectors[which.to(op.device)] = x[done.to(op.device)]
            upper[which], certain[which] = found[done], sure[done]
            if over:
                return Ritz(vectors, upper, certain, 2 * run.k, starved)
            run.keep((~done).nonzero()[:, 0])
            running, steps = running[~done], steps[~done]


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
