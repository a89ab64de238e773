"""sigma_1 with bounds: by which algorithm, in which precision, and proved if asked.

Letters: N matrices of a flat batch, m rows, n columns, *batch leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from rankscope.linalg import factors, lanczos
from rankscope.linalg.certify import certified_bound, formation_error
from rankscope.linalg.dense import Dense
from rankscope.linalg.frobenius import product
from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma, unit_roundoff

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


def largest_singular_value(op: Operator, frobenius: Tensor, magnitude: Tensor, wish: Wish) -> Sigma:
    """sigma_1 of every matrix of `op`, whose Frobenius norms (N,) are known; those that are 0 or NaN give
    nonsense."""
    good = frobenius > 0  # False for NaN as well
    magnitude = torch.where(good, magnitude, 1.0)
    if isinstance(op, LowRank):
        value = flat(factors.singular_values(op)[..., 0], op)
        return _direct(value, gamma(4 * (sum(op.shape[-2:]) + op.A.shape[-2])) * magnitude, "factors")
    if min(op.shape[-2:]) <= SMALL and not wish.certify:
        value = flat(torch.linalg.svdvals(torch.nan_to_num(op.to_dense()))[..., 0], op)
        return _direct(value, (formation_error(op) + gamma(8 * sum(op.shape[-2:]))) * magnitude, "svd")
    if wish.certify:
        return _certified(op, frobenius, magnitude, good, wish)
    return _by_lanczos(op, frobenius, magnitude, good, wish)


def _direct(value: Tensor, width: Tensor, method: str) -> Sigma:
    return Sigma(value, (value - width).clamp(min=0), value + width, torch.ones_like(value), method, 0)


def _by_lanczos(op: Operator, frobenius: Tensor, magnitude: Tensor, good: Tensor, wish: Wish) -> Sigma:
    """Float32 products, unless the leaves are float64 or float32's rounding would be felt at `rtol`:
    docs/math.md, (13)."""
    flip = _lies_flat(op)
    upright = op.mT if flip else op
    generator = wish.fresh()
    state = generator.get_state()
    warm = wish.warm if not flip or wish.warm is None else (op @ wish.warm[..., None])[..., 0]
    for dtype in dict.fromkeys((op.dtype, torch.float64)):
        generator.set_state(state)
        allowance = 2 * unit_roundoff(dtype) * max(op.shape[-2:]) ** 0.5 * magnitude
        goal = lanczos.Goal(frobenius, allowance, ~good, 0.98 * wish.rtol, wish.confidence)
        ritz = lanczos.largest(upright.cast(dtype), goal, generator=generator, warm=warm)
        if not ritz.starved:
            break
    x = ritz.vectors.reshape(*op.batch_shape, -1)
    value = flat(torch.linalg.vector_norm(product(op, x, transposed=flip), dim=-1), op)
    lower = value - (formation_error(op) + gamma(max(op.shape[-2:]) + 8)) * magnitude
    lower = torch.maximum(lower, frobenius / min(op.shape[-2:]) ** 0.5 * (1 - gamma(prod(op.shape[-2:]))))
    value = torch.maximum(value, lower)
    confidence = torch.where(ritz.certain, 1.0, torch.full_like(value, wish.confidence))
    return Sigma(value, lower, torch.maximum(ritz.upper, value), confidence, "lanczos", ritz.products + 1)


def _certified(op: Operator, frobenius: Tensor, magnitude: Tensor, good: Tensor, wish: Wish) -> Sigma:
    """Lanczos finds, Cholesky proves. Where the proof fails, Lanczos had not found sigma_1: a dense SVD
    does."""
    found = _by_lanczos(op, frobenius, magnitude, good, replace(wish, rtol=wish.rtol / 2, confidence=0.9))
    shape = op.batch_shape
    tau = (found.value * (1 + 0.9 * wish.rtol)).reshape(shape).to(op.device)
    upper = flat(certified_bound(op, tau, magnitude=magnitude.reshape(shape).to(op.device)), op)
    value, lower, upper = (
        found.value,
        found.lower,
        torch.minimum(upper, frobenius * (1 + gamma(prod(op.shape[-2:])))),
    )
    unproved = good & ~(upper <= lower * (1 + wish.rtol))
    if bool(unproved.any()):
        exact = flat(torch.linalg.svdvals(torch.nan_to_num(op.to_dense()))[..., 0], op)
        width = (formation_error(op) + gamma(8 * sum(op.shape[-2:]))) * magnitude
        value = torch.where(unproved, exact, value)
        lower = torch.where(unproved, exact - width, lower)
        upper = torch.where(unproved, exact + width, upper)
    return Sigma(value, lower, upper, torch.ones_like(value), "cholesky", found.products)


def _lies_flat(op: Operator) -> bool:
    """Is M^T the better one to iterate on? The short side makes short vectors; a large single matrix wants
    its rows in memory order, since it is read by blocks of rows."""
    if not op.batch_shape and prod(op.shape) >= lanczos.FUSED:
        W = op.leaves[0]
        return isinstance(op, Dense) and W.stride(-1) > W.stride(-2)
    return op.shape[-2] < op.shape[-1]


def flat(x: Tensor, op: Operator) -> Tensor:
    """(*batch) or broadcastable -> (N,) on the CPU."""
    return x.expand(op.batch_shape).reshape(-1).cpu()
