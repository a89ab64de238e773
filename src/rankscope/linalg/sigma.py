"""sigma_1 with bounds: by which algorithm, in which precision, and proved if asked.

Letters: N matrices of a flat batch, m rows, n columns, *batch leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from rankscope.linalg import lanczos
from rankscope.linalg.certify import by_eigenvalues, certified_bound
from rankscope.linalg.dense import Dense
from rankscope.linalg.frobenius import formation_error, product
from rankscope.linalg.lanczos import CACHED
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma
from rankscope.linalg.scaled_group import ScaledGroup

SMALL = 48  # short sides up to this go to a dense float64 SVD
# and up to this, where Lanczos is slow, to the eigenvalues of the float64 Gram matrix (docs/log.md)
EXACT = 1024
PATIENCE = 128  # steps of Lanczos after which those eigenvalues cost less than further steps
PROOF = 24  # and where a proof is wanted, for which that Gram matrix is formed in any case


@dataclass(frozen=True)
class SigmaOptions:
    """What is asked of sigma_1: a relative width, a proof, a confidence; and what is known or drawn
    for it."""

    rtol: float
    certify: bool = False
    confidence: float = 1 - 1e-3
    generator: torch.Generator = field(default_factory=torch.Generator)
    slack: float = 0.0  # relative error that ||M||_F may have
    all: bool = False  # singular values, which then give sigma_1, too

    def __post_init__(self) -> None:
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must lie in (0, 1); got {self.rtol}.")
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"confidence must lie in (0, 1); got {self.confidence}. For certainty pass "
                "certify=True."
            )


@dataclass(frozen=True)
class Sigma:
    """(N,) float64 CPU tensors, lower <= value <= upper."""

    value: Tensor
    lower: Tensor
    upper: Tensor
    confidence: Tensor
    method: str
    products: int


def largest(group: ScaledGroup, options: SigmaOptions) -> Sigma:
    """sigma_1 of every matrix of a group; those whose Frobenius norm is 0 or NaN give nonsense."""
    side = min(group.op.shape[-2:])
    if side <= SMALL:
        values, width = by_svd(group)
        return direct(values[:, 0], width, "svd")
    if options.certify:
        return _certified(group, options)
    if side > EXACT:
        return _by_lanczos(group, options, steps=lanczos.STEPS)
    found = _by_lanczos(group, options, steps=PATIENCE)
    # a stable rank is as wide as twice both errors
    room = options.rtol - 2 * group.error
    wide = (group.norm > 0) & ~(found.upper <= found.lower * (1 + room))
    return _exactly(group, found, wide)


def direct(value: Tensor, width: Tensor, method: str) -> Sigma:
    """A value that is off by rounding alone, at most `width`."""
    return Sigma(
        value, (value - width).clamp(min=0), value + width, torch.ones_like(value), method, 0
    )


def by_svd(group: ScaledGroup) -> tuple[Tensor, Tensor]:
    """All singular values (N, min(m, n)), descending, and what each may be off by (N,)."""
    op = group.op
    values = torch.linalg.svdvals(torch.nan_to_num(op.to_dense())).cpu()
    return values, (formation_error(op) + gamma(8 * sum(op.shape[-2:]))) * group.magnitude


def _exactly(group: ScaledGroup, found: Sigma, which: Tensor) -> Sigma:
    """`found`, with those that `which` (N,) names taken from the eigenvalues of their Gram matrix,
    or, where that is large, from a dense SVD."""
    if not bool(which.any()):
        return found
    op = group.op
    if min(op.shape[-2:]) > EXACT:
        values, width = by_svd(group)
        exact = direct(values[:, 0], width, "svd")
        value, lower, upper = exact.value, exact.lower, exact.upper
    else:
        index = which.nonzero()[:, 0]
        some = op.select(index, op.batch_shape)
        value, lower, upper = (torch.zeros_like(found.value) for _ in range(3))
        parts = by_eigenvalues(some, magnitude=group.magnitude[index])
        for whole, part in zip((value, lower, upper), parts, strict=True):
            whole[index] = part
    return Sigma(
        torch.where(which, value, found.value),
        torch.where(which, lower, found.lower),
        torch.where(which, upper, found.upper),
        torch.where(which, 1.0, found.confidence),
        ("svd" if min(op.shape[-2:]) > EXACT else "gram") if bool(which.all()) else found.method,
        found.products,
    )


def _by_lanczos(group: ScaledGroup, options: SigmaOptions, *, steps: int) -> Sigma:
    """Float32 products, unless the leaves are float64 or float32's rounding would be felt at
    `rtol`: docs/math.md, (13)."""
    op, norm, shape = group.op, group.norm, group.op.shape[-2:]
    flip = _lies_flat(group.matrix)
    generator = options.generator
    state = generator.get_state()
    for dtype in dict.fromkeys((op.dtype, torch.float64)):
        generator.set_state(state)
        room = max(0.98 * options.rtol - 2 * float(group.error[norm > 0].max()), options.rtol / 2)
        rule = lanczos.StopRule(
            norm * (1 + group.error), group.allowance(dtype), ~(norm > 0), room, options.confidence
        )
        matrix = group.cast(dtype)
        ritz = lanczos.largest(
            matrix.mT if flip else matrix, rule, generator=generator, steps=steps
        )
        if not ritz.starved:
            break
    value = torch.linalg.vector_norm(product(op, ritz.vectors, transposed=flip), dim=-1).cpu()
    lower = value - (formation_error(op) + gamma(max(shape) + 8)) * group.magnitude
    lower = torch.maximum(lower, norm * (1 - group.error) / min(shape) ** 0.5)
    value = torch.maximum(value, lower)
    confidence = torch.where(ritz.certain, 1.0, torch.full_like(value, options.confidence))
    return Sigma(
        value, lower, torch.maximum(ritz.upper, value), confidence, "lanczos", ritz.products + 1
    )


def _certified(group: ScaledGroup, options: SigmaOptions) -> Sigma:
    """Lanczos finds, Cholesky proves. Where Lanczos is slow or has not found sigma_1,
    eigenvalues or a dense SVD do."""
    steps = lanczos.STEPS if min(group.op.shape[-2:]) > EXACT else PROOF
    found = _by_lanczos(group, replace(options, rtol=options.rtol / 2, confidence=0.9), steps=steps)
    real = group.norm > 0
    near = real & (found.upper <= found.lower * (1 + options.rtol / 2))
    if bool(near.any()):
        tau = found.value * (1 + 0.9 * options.rtol)
        upper = certified_bound(group.op, tau, magnitude=group.magnitude)
        upper = torch.minimum(upper, group.norm * (1 + group.error))
        found = replace(found, upper=torch.where(near, upper, torch.inf))
    proved = near & (found.upper <= found.lower * (1 + options.rtol))
    found = replace(found, method="cholesky", confidence=torch.ones_like(found.value))
    return _exactly(group, found, real & ~proved)


def _lies_flat(op: Operator) -> bool:
    """Is M^T the better one to iterate on? The short side makes short vectors; a large single
    matrix wants its rows in memory order, since it is read by blocks of rows."""
    if op.shape[0] == 1 and prod(op.shape) > CACHED:
        W = op.leaves[0]
        return isinstance(op, Dense) and W.stride(-1) > W.stride(-2)
    return op.shape[-2] < op.shape[-1]
