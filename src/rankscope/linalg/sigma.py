"""sigma_1 with bounds: chooses algorithm and precision, and proves the bound if asked.

Letters: N matrices of a flat batch, m rows, n columns, *batch leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from rankscope.linalg import lanczos
from rankscope.linalg.certify import by_eigenvalues, certified_bound, largest_tau
from rankscope.linalg.dense import Dense
from rankscope.linalg.frobenius import product
from rankscope.linalg.lanczos import CACHED, widened_by_blocks
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma
from rankscope.linalg.scaled_group import ScaledGroup

SMALL = 48  # short sides up to this go to a dense float64 SVD
# and up to this, where Lanczos is slow, to the eigenvalues of the float64 Gram matrix (docs/log.md)
EXACT = 1024
PATIENCE = 128  # steps of Lanczos after which those eigenvalues cost less than further steps
NEAR = 0.98  # share of the width that Lanczos aims at: its bounds lie on a grid of 1 %
PROOF = 24  # the same for a proof, which forms that Gram matrix in any case


@dataclass(frozen=True)
class SigmaOptions:
    """Options for estimating sigma_1: relative width, proof, confidence, and the generator of the
    start vector."""

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
    """sigma_1 of every matrix of a group. Undefined where the Frobenius norm is 0 or NaN."""
    side = min(group.op.shape[-2:])
    if side <= SMALL:
        return _by_svd(group)
    # drawn once, so that all bounds rest on one event, (11)
    n = group.op.shape[-2 if _lies_flat(group.matrix) else -1]
    source = options.generator
    g = torch.randn(n, dtype=torch.float64, generator=source, device=source.device)
    if options.certify:
        return _certified(group, options, g)
    if side > EXACT:
        return _by_lanczos(group, options, g, steps=lanczos.STEPS)
    found = _by_lanczos(group, options, g, steps=PATIENCE)
    found = _narrowed(found, _wide(found, group, options), group, _by_eigenvalues)
    # widths near float64's limits: steps of Lanczos round less than a Gram matrix
    further = partial(_by_lanczos, options=options, g=g, steps=lanczos.STEPS)
    return _narrowed(found, _wide(found, group, options), group, further)


def direct(value: Tensor, width: Tensor, method: str) -> Sigma:
    """A value whose only error is rounding, at most ``width``."""
    return Sigma(
        value, (value - width).clamp(min=0), value + width, torch.ones_like(value), method, 0
    )


def by_svd(group: ScaledGroup) -> tuple[Tensor, Tensor]:
    """All singular values (N, min(m, n)), descending, and a bound on their errors (N,)."""
    values = torch.linalg.svdvals(torch.nan_to_num(group.op.to_dense())).cpu()
    return values, group.formation + gamma(8 * sum(group.op.shape[-2:])) * group.frobenius


def _by_svd(group: ScaledGroup) -> Sigma:
    values, width = by_svd(group)
    return direct(values[:, 0], width, "svd")


def _by_eigenvalues(group: ScaledGroup) -> Sigma:
    value, lower, upper = by_eigenvalues(group)
    return Sigma(value, lower, upper, torch.ones_like(value), "gram", 0)


def _room(group: ScaledGroup, rtol: float) -> Tensor:
    """(N,): the relative width that sigma_1 may have for ||M||_F / sigma_1, whose numerator has an
    error of its own, to have width `rtol`; rtol / 2 at least, even if that error alone exceeds
    it."""
    room = (1 + rtol) * (1 - group.error) / (1 + group.error) - 1
    return torch.where(group.real, room.clamp(min=rtol / 2), rtol)


def _wide(found: Sigma, group: ScaledGroup, options: SigmaOptions) -> Tensor:
    """(N,) bool: wider than asked."""
    return group.real & ~(found.upper <= found.lower * (1 + _room(group, options.rtol)))


def _narrowed(
    found: Sigma, which: Tensor, group: ScaledGroup, way: Callable[[ScaledGroup], Sigma]
) -> Sigma:
    """``found``, with narrower bounds by another method, `way`, for the matrices ``which`` (N,).
    Every lower bound is certain, so the larger one holds; an upper bound below it has failed."""
    if not bool(which.any()):
        return found
    index = which.nonzero()[:, 0]
    other = way(group if bool(which.all()) else group.select(index))
    lower = torch.maximum(found.lower[index], other.lower)
    better = (other.upper < found.upper[index]) | (found.upper[index] < lower)
    columns = {"lower": lower}
    for name in ("upper", "value", "confidence"):
        old, new = getattr(found, name)[index], getattr(other, name)
        columns[name] = torch.where(better, new, old)
    columns["value"] = torch.minimum(torch.maximum(columns["value"], lower), columns["upper"])
    changed = {
        name: getattr(found, name).index_copy(0, index, new) for name, new in columns.items()
    }
    method = other.method if bool(which.all()) and bool(better.all()) else found.method
    return replace(found, **changed, method=method, products=max(found.products, other.products))


def _by_lanczos(group: ScaledGroup, options: SigmaOptions, g: Tensor, *, steps: int) -> Sigma:
    """Products in float32 first, unless the leaves are float64; in float64 where float32's rounding
    matters at ``rtol`` or is all that is left of the width: docs/math.md, (13)."""
    found, again = _products_in(group.op.dtype, group, options, g, steps)

    def in_float64(some: ScaledGroup) -> Sigma:
        return _products_in(torch.float64, some, options, g, steps)[0]

    return _narrowed(found, again, group, in_float64)


def _products_in(
    dtype: torch.dtype, group: ScaledGroup, options: SigmaOptions, g: Tensor, steps: int
) -> tuple[Sigma, Tensor]:
    """By Lanczos with products in ``dtype``; and the matrices (N,) for which float64 would give
    more digits."""
    op, shape = group.op, group.op.shape[-2:]
    flip = _lies_flat(group.matrix)
    below = group.formation + gamma(sum(shape) + 8) * group.magnitude
    rule = lanczos.StopRule(
        group.frobenius,
        group.allowance(dtype),
        below,
        NEAR * _room(group, options.rtol),
        ~group.real,
        options.confidence,
    )
    matrix = group.matrix.mT if flip else group.matrix
    if not widened_by_blocks(matrix, dtype):
        matrix = group.cast(dtype).mT if flip else group.cast(dtype)
    ritz = lanczos.largest(matrix, rule, g=g, dtype=dtype, steps=steps)
    value = torch.linalg.vector_norm(product(op, ritz.vectors, transposed=flip), dim=-1).cpu()
    lower = torch.maximum(value - below, group.norm * (1 - group.error) / min(shape) ** 0.5)
    value = torch.maximum(value, lower)
    confidence = torch.where(ritz.certain, 1.0, torch.full_like(value, options.confidence))
    found = Sigma(
        value, lower, torch.maximum(ritz.upper, value), confidence, "lanczos", ritz.products + 1
    )
    coarse = ritz.coarse | (ritz.reached & _wide(found, group, options))
    return found, group.real & coarse & (dtype != torch.float64)


def _certified(group: ScaledGroup, options: SigmaOptions, g: Tensor) -> Sigma:
    """Lanczos estimates, and a Cholesky factor proves. Where Lanczos is slow or has not
    converged: eigenvalues of the Gram matrix, or a dense SVD."""
    side = min(group.op.shape[-2:])
    rough = replace(options, rtol=options.rtol / 2, confidence=0.9)
    found = _by_lanczos(group, rough, g, steps=lanczos.STEPS if side > EXACT else PROOF)
    tau = largest_tau(group, found.lower * (1 + _room(group, options.rtol)))
    near = group.real & (found.upper <= tau)
    upper = torch.full_like(tau, torch.inf)
    if bool(near.any()):
        upper = torch.where(near, certified_bound(group, tau), torch.inf)
        upper = torch.minimum(upper, torch.where(near, group.frobenius, torch.inf))
    found = replace(found, upper=upper, method="cholesky", confidence=torch.ones_like(found.value))
    if side <= EXACT:
        found = _narrowed(found, _wide(found, group, options), group, _by_eigenvalues)
    return _narrowed(found, _wide(found, group, options), group, _by_svd)


def _lies_flat(op: Operator) -> bool:
    """Whether to iterate on M^T. The short side gives short vectors; a large single matrix is read
    by blocks of rows and should lie in memory that way."""
    if op.shape[0] == 1 and prod(op.shape) > CACHED:
        W = op.leaves[0]
        return isinstance(op, Dense) and W.stride(-1) > W.stride(-2)
    return op.shape[-2] < op.shape[-1]
