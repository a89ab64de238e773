"""sigma_1 with bounds: by which algorithm, in which precision, and proved if asked.

Letters: N matrices of a flat batch, m rows, n columns, *batch leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from rankscope.linalg import lanczos
from rankscope.linalg.certify import certified_bound
from rankscope.linalg.dense import Dense
from rankscope.linalg.frobenius import formation_error, product
from rankscope.linalg.normal import CACHED
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma
from rankscope.linalg.subject import Subject

SMALL = 48  # short sides up to this go to a dense float64 SVD


@dataclass(frozen=True)
class Wish:
    """What is asked of sigma_1: a relative width, a proof, a confidence; and what is known or drawn for
    it."""

    rtol: float
    certify: bool = False
    confidence: float = 1 - 1e-3
    generator: torch.Generator | None = None
    warm: Tensor | None = None
    slack: float = 0.0  # relative error that ||M||_F may have
    all: bool = False  # singular values, which then give sigma_1, too

    def __post_init__(self) -> None:
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must lie in (0, 1); got {self.rtol}.")
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"confidence must lie in (0, 1); got {self.confidence}. For certainty pass certify=True."
            )

    def fresh(self) -> torch.Generator:
        """A generator that draws the same start for every group: seeded by the caller's, or by a fixed
        number."""
        if self.generator is None:
            return torch.Generator().manual_seed(0)
        return self.generator


@dataclass(frozen=True)
class Sigma:
    """(N,) float64 CPU tensors, lower <= value <= upper; `formed` is the relative rounding error of M's own
    entries."""

    value: Tensor
    lower: Tensor
    upper: Tensor
    confidence: Tensor
    method: str
    products: int


def largest(subject: Subject, wish: Wish) -> Sigma:
    """sigma_1 of every matrix of a group; those whose Frobenius norm is 0 or NaN give nonsense."""
    if wish.certify:
        return _certified(subject, wish)
    if min(subject.op.shape[-2:]) <= SMALL:
        values, width = by_svd(subject)
        return direct(values[:, 0], width, "svd")
    return _by_lanczos(subject, wish)


def direct(value: Tensor, width: Tensor, method: str) -> Sigma:
    """A value that is off by rounding alone, at most `width`."""
    return Sigma(value, (value - width).clamp(min=0), value + width, torch.ones_like(value), method, 0)


def by_svd(subject: Subject) -> tuple[Tensor, Tensor]:
    """All singular values (N, min(m, n)), descending, and what each may be off by (N,)."""
    op = subject.op
    values = torch.linalg.svdvals(torch.nan_to_num(op.to_dense())).cpu()
    return values, (formation_error(op) + gamma(8 * sum(op.shape[-2:]))) * subject.magnitude


def _by_lanczos(subject: Subject, wish: Wish) -> Sigma:
    """Float32 products, unless the leaves are float64 or float32's rounding would be felt at `rtol`:
    docs/math.md, (13)."""
    op, norm, shape = subject.op, subject.norm, subject.op.shape[-2:]
    flip = _lies_flat(subject.matrix)
    generator = wish.fresh()
    state = generator.get_state()
    warm = wish.warm if not flip or wish.warm is None else (op @ wish.warm[..., None])[..., 0]
    for dtype in dict.fromkeys((op.dtype, torch.float64)):
        generator.set_state(state)
        room = max(0.98 * wish.rtol - 2 * float(subject.error[norm > 0].max()), wish.rtol / 2)
        goal = lanczos.Goal(
            norm * (1 + subject.error), subject.allowance(dtype), ~(norm > 0), room, wish.confidence
        )
        matrix = subject.cast(dtype)
        ritz = lanczos.largest(matrix.mT if flip else matrix, goal, generator=generator, warm=warm)
        if not ritz.starved:
            break
    value = torch.linalg.vector_norm(product(op, ritz.vectors, transposed=flip), dim=-1).cpu()
    lower = value - (formation_error(op) + gamma(max(shape) + 8)) * subject.magnitude
    lower = torch.maximum(lower, norm * (1 - subject.error) / min(shape) ** 0.5)
    value = torch.maximum(value, lower)
    confidence = torch.where(ritz.certain, 1.0, torch.full_like(value, wish.confidence))
    return Sigma(value, lower, torch.maximum(ritz.upper, value), confidence, "lanczos", ritz.products + 1)


def _certified(subject: Subject, wish: Wish) -> Sigma:
    """Lanczos finds, Cholesky proves. Where the proof fails, Lanczos had not found sigma_1: a dense SVD
    does."""
    found = _by_lanczos(subject, replace(wish, rtol=wish.rtol / 2, confidence=0.9))
    value, lower, norm = found.value, found.lower, subject.norm
    tau = value * (1 + 0.9 * wish.rtol)
    upper = certified_bound(subject.op, tau, magnitude=subject.magnitude)
    upper = torch.minimum(upper, norm * (1 + subject.error))
    unproved = (norm > 0) & ~(upper <= lower * (1 + wish.rtol))
    if bool(unproved.any()):
        values, width = by_svd(subject)
        exact = values[:, 0]
        value = torch.where(unproved, exact, value)
        lower = torch.where(unproved, exact - width, lower)
        upper = torch.where(unproved, exact + width, upper)
    return Sigma(value, lower, upper, torch.ones_like(value), "cholesky", found.products)


def _lies_flat(op: Operator) -> bool:
    """Is M^T the better one to iterate on? The short side makes short vectors; a large single matrix wants
    its rows in memory order, since it is read by blocks of rows."""
    if op.shape[0] == 1 and prod(op.shape) > CACHED:
        W = op.leaves[0]
        return isinstance(op, Dense) and W.stride(-1) > W.stride(-2)
    return op.shape[-2] < op.shape[-1]
