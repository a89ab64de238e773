"""sigma_1 of an operator by Golub-Kahan-Lanczos with full reorthogonalisation: docs/math.md, (9) to
(14).

The bidiagonalisation is run in its Gram form, T_k = V^T M^T M V (tridiagonal, = B_k^T
B_k): only sigma_1 is asked of it, for which nothing is lost, and a row of M that is in the
cache serves M v and M^T (M v).

Letters: N matrices of a flat batch, m rows, n columns, k steps, h rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from statistics import NormalDist

import torch
from torch import Tensor

from rankscope.linalg.dense import Dense
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import unit_roundoff
from rankscope.linalg.tridiagonal import Tridiagonal

STEPS = 1024  # at most; bounds wider than asked are then returned as they are
SHORT = 3  # with fewer steps to go, finished matrices are not worth removing from the batch
FIRST = 4  # steps before the bounds are first checked
# share of w^2 outside the span of V below which it is orthogonalised again: docs/math.md, (9)
TWICE = 0.5
# units of sqrt(max(m, n)) u theta below which b_k may be rounding alone
END = 64
# entries of a matrix that stays in the last-level cache from step to step; a larger one is read in
# blocks of rows of this size, so that the second product of a step finds them in the cache
CACHED = 2**22
# bytes, for each thread, of a block of rows that is widened in every step: a core's own cache
# holds it (docs/log.md)
WIDENED = 2**19


@dataclass(frozen=True)
class Ritz:
    """The outcome of N runs: unit vectors (N, n) float64, upper bounds (N,) float64 on sigma_1,
    whether each is certain, whether it is as narrow as the rule asks, and whether more digits can
    be had in float64, all (N,) bool; and the number of products M x and M^T x."""

    vectors: Tensor
    upper: Tensor
    certain: Tensor
    reached: Tensor
    coarse: Tensor
    products: int


@dataclass(frozen=True)
class StopRule:
    """When a run may stop, per matrix (N,) float64 CPU: an upper bound on ||M||_F, what the
    products' rounding may add to sigma_1 and what it takes from the lower bound, and a relative
    width; `ignore` (N,) bool: matrices of no interest; for all a confidence."""

    frobenius: Tensor
    allowance: Tensor
    below: Tensor
    rtol: Tensor
    ignore: Tensor
    confidence: float


class GramProduct:
    """The map v -> M^T M v in `dtype` of a batch of matrices, (N, n) -> (N, n), by blocks of rows.
    Blocks of a large matrix in a narrower dtype are widened one at a time, which is exact."""

    def __init__(self, op: Operator, dtype: torch.dtype) -> None:
        N, m, n = op.shape
        self.narrow: tuple[Tensor, ...] = ()
        if isinstance(op, Dense) and widened_by_blocks(op, dtype):
            height = max(1, WIDENED * torch.get_num_threads() // (n * dtype.itemsize))
            self.narrow = op.W[0].split(height)
            self.wide = torch.empty_like(self.narrow[0], dtype=dtype)
            return
        height = max(1, CACHED // n) if N == 1 else m
        self.pieces = [op.rows(i, min(i + height, m)) for i in range(0, m, height)]

    def __call__(self, v: Tensor) -> Tensor:
        if self.narrow:
            return self._widening(v[0])[None]
        images = [_image(piece, v) for piece in self.pieces]
        return sum(images[1:], images[0])

    def _widening(self, v: Tensor) -> Tensor:
        image = torch.zeros_like(v)
        for piece in self.narrow:
            rows = self.wide[: len(piece)].copy_(piece)
            image.addmv_(rows.mT, rows.mv(v))
        return image


def widened_by_blocks(op: Operator, dtype: torch.dtype) -> bool:
    """Whether `GramProduct` reads this operator in its own, narrower dtype: a large matrix on a CPU
    whose rows lie in memory as they are. A copy in `dtype` would take twice the memory or more."""
    if not isinstance(op, Dense) or op.W.dtype == dtype or op.shape[0] != 1:
        return False
    return op.W.is_cpu and op.W.stride(-1) == 1 and op.W[0].numel() > CACHED


def _image(M: Operator, v: Tensor) -> Tensor:
    """M^T M v, (N, n) -> (N, n). On a CPU a batched product takes one core for one matrix, and x
    W^T with x as a row is several times faster in it than W x with x as a column."""
    if not isinstance(M, Dense):
        return M.mT.matvec(M.matvec(v))
    if len(v) == 1:
        return M.W[0].mT.mv(M.W[0].mv(v[0]))[None]
    return torch.bmm(torch.bmm(v[:, None], M.W.mT), M.W)[:, 0]


class _Run:
    """N recursions at step k: V (N, > k, n) orthonormal rows, the last of them the next vector; a
    and b the columns of T_k."""

    def __init__(self, op: Operator, start: Tensor) -> None:
        self.op, self.gram = op, GramProduct(op, start.dtype)
        self.V = start.new_empty(len(start), 1 + min(*op.shape[-2:], 24), start.shape[1])
        self.V[:, 0] = start
        self.a: list[Tensor] = []
        self.b: list[Tensor] = []

    @property
    def k(self) -> int:
        return len(self.a)

    def step(self) -> None:
        """One step of (9); a_k = v_k^T M^T M v_k is the last coefficient of the
        orthogonalisation."""
        k = self.k + 1
        if k == self.V.shape[1]:
            self.V = torch.cat([self.V, torch.empty_like(self.V)], dim=1)
        V = self.V[:, :k]
        w = self.gram(V[:, k - 1])[:, None]  # (N, 1, n)
        along = w @ V.mT  # (N, 1, k)
        w = torch.baddbmm(w, along, V, alpha=-1)
        size, a = torch.linalg.vector_norm(w, dim=-1), along[..., -1]  # (N, 1)
        taken = torch.linalg.vector_norm(along, dim=-1)
        if w.is_cuda or bool((size < TWICE**0.5 * taken).any()):
            along, once = w @ V.mT, size
            w = w.baddbmm_(along, V, alpha=-1)
            size, a = torch.linalg.vector_norm(w, dim=-1), a + along[..., -1]
            # in the span of V but for rounding (Kahan and Parlett): the Krylov space has ended
            size = torch.where(size < TWICE**0.5 * once, 0.0, size)
        self.a.append(a[:, 0])
        self.b.append(size[:, 0])
        self.V[:, k] = torch.where(size > 0, w[:, 0] / size, 0.0)

    def vectors(self, y: Tensor) -> Tensor:
        """Unit Ritz vectors (N, n) float64 from coefficients (N, k)."""
        x = (y.to(self.V)[:, None, :] @ self.V[:, : self.k])[:, 0]
        return torch.nn.functional.normalize(x.double(), dim=-1)

    def keep(self, index: Tensor) -> None:
        """Goes on with the matrices at `index` only."""
        self.op = self.op.select(index, self.op.batch_shape)
        self.gram = GramProduct(self.op, self.V.dtype)
        index = index.to(self.V.device)
        self.V = self.V[index]
        self.a, self.b = [x[index] for x in self.a], [x[index] for x in self.b]


def largest(
    op: Operator,
    rule: StopRule,
    *,
    g: Tensor,
    dtype: torch.dtype,
    steps: int = STEPS,
) -> Ritz:
    """Runs until upper <= (1 + rtol) times the lower bound for every matrix, the Krylov space is
    all there is, or `steps` are taken.

    op has a flat batch (N,) and is multiplied in `dtype`, which is its own unless
    `widened_by_blocks`. g (n,) float64 is a normal random vector, drawn independently of it: (11).
    All matrices start from it, so that a matrix gives the same result alone and in a batch. Where
    the allowance alone is too much for `rtol`, a run in float32 ends at once, and one in float64
    accepts bounds a few allowances apart. Where a Krylov space has ended (few distinct singular
    values), only the allowance is left of the width, and float64 gives more digits.
    """
    N, size = op.batch_shape[0], torch.linalg.vector_norm(g)
    start = (g / size).to(op.device, dtype).expand(N, -1)
    delta = NormalDist().inv_cdf(1 - rule.confidence / 2)
    log_target = torch.full((N,), log(size / delta), dtype=torch.float64)  # (12)
    limit, look = min(*op.shape[-2:], steps), FIRST
    wide = dtype == torch.float64
    least = 3.0 if wide else 0.0
    noise = END * max(op.shape[-2:]) ** 0.5 * unit_roundoff(dtype)
    run = _Run(op, start)
    running = torch.arange(N)
    taken = rule.ignore.long()  # by those running; 0: not there yet
    vectors = torch.zeros(N, op.shape[-1], dtype=torch.float64, device=op.device)
    upper = torch.zeros(N, dtype=torch.float64)
    certain, reached, coarse = (torch.zeros(N, dtype=torch.bool) for _ in range(3))
    while True:
        run.step()
        if run.k < min(look, limit):
            continue
        a, b, now = _host(run.a), _host(run.b), torch.full((len(running),), run.k)
        known = [x[running] for x in (rule.frobenius, rule.allowance, rule.below, log_target)]
        rtol = rule.rtol[running]
        inside, tight, ahead = Tridiagonal(a, b, now, *known).within(rtol, least=least)
        starved = tight & (taken == 0) & (not wide)
        taken = torch.where((taken == 0) & (inside | starved), now, taken)
        coarse[running] |= starved
        over = run.k == limit or bool((taken > 0).all())
        done = (taken > 0) | over
        look = run.k if over else _next_look(run.k, ahead[taken == 0])
        if over or (2 * int(done.sum()) >= len(running) and look - run.k >= SHORT):
            T = Tridiagonal(a, b, torch.where(taken > 0, taken, now), *known)
            found, sure = T.upper(rtol)
            x, which = run.vectors(T.top[1]), running[done]
            vectors[which.to(op.device)] = x[done.to(op.device)]
            upper[which], certain[which] = found[done], sure[done]
            reached[which] = (taken > 0)[done] & ~coarse[which]
            if not wide:
                coarse[which] |= (T.smallest_coupling <= noise * T.top[0])[done]
            if over:
                return Ritz(vectors, upper, certain, reached, coarse, 2 * run.k)
            run.keep((~done).nonzero()[:, 0])
            running, taken = running[~done], taken[~done]


def _next_look(k: int, ahead: Tensor) -> int:
    """The step after k at which the bounds are checked next: by then half of the matrices should
    have converged, if log p_k keeps growing at its rate: `ahead` (N,) times as many steps. A check
    costs about as much as a step."""
    return max(k + 1 + k // 24, int(k * min(1.6, float(ahead.median()))))


def _host(columns: list[Tensor]) -> Tensor:
    """k tensors (N,) -> (N, k) float64 on the CPU."""
    return torch.stack(columns, dim=1).double().cpu()
