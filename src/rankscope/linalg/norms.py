"""||M||_F and sigma_1, which everything else is made of, for one matrix or a batch of any size and scale.

Runs what fits in a cache together, scales extreme entries first, and names what cannot be measured.
Letters: N matrices of a flat batch, *batch leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from rankscope.linalg.certify import formation_error
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma
from rankscope.linalg.sigma import Sigma, Wish, flat, largest_singular_value

GROUP = 2**22  # entries of the matrices that are run together on a CPU: what its last-level cache holds
NOT_FINITE = "has NaN or infinite entries, or overflows float64"
ZERO = "is exactly zero"


@dataclass(frozen=True)
class Norms:
    """`frobenius` (N,) float64 CPU, to a relative `error` (N,); `sigma`; why a matrix has none (NaN) or is
    zero."""

    frobenius: Tensor
    error: Tensor
    sigma: Sigma
    reason: tuple[str | None, ...]


def norms(op: Operator, wish: Wish) -> Norms:
    """Both norms of every matrix of `op`; the same whether a matrix is alone or in a batch."""
    generator = wish.fresh()
    state = generator.get_state()
    parts = []
    for start, stop in _groups(op):
        generator.set_state(state)
        group = op.take(slice(start, stop)) if op.batch_shape else op
        warm = wish.warm
        if warm is not None and op.batch_shape:
            warm = warm.expand(*op.batch_shape, op.shape[-1])[start:stop]
        parts.append(_of_group(group, replace(wish, generator=generator, warm=warm)))
    return _joined(parts)


def frobenius(op: Operator) -> tuple[Tensor, tuple[str | None, ...]]:
    """||M||_F (N,) float64 CPU, and the reasons as in `Norms`."""
    parts = [_frobenius(op.take(slice(i, j)) if op.batch_shape else op) for i, j in _groups(op)]
    value = torch.cat([norm * size for _, norm, size in parts])
    reason = tuple(r for _, norm, _ in parts for r in _reasons(norm))
    return torch.where(torch.tensor([r == NOT_FINITE for r in reason]), torch.nan, value), reason


def _of_group(op: Operator, wish: Wish) -> Norms:
    op, norm, size = _frobenius(op)
    reason = _reasons(norm)
    magnitude = flat(op.magnitude(), op)
    error = formation_error(op) * magnitude / norm + gamma(2 * prod(op.shape[-2:]))
    if all(reason):
        sigma = Sigma(norm, norm, norm, torch.ones_like(norm), "none", 0)
    else:
        sigma = largest_singular_value(op, norm, magnitude, wish)
    zero = torch.tensor([r == ZERO for r in reason])
    bad = torch.tensor([r == NOT_FINITE for r in reason])

    def settled(x: Tensor) -> Tensor:
        return torch.where(bad, torch.nan, torch.where(zero, 0.0, x * size))

    confidence = torch.where(zero | bad, 1.0, sigma.confidence)
    value, lower, upper = settled(sigma.value), settled(sigma.lower), settled(sigma.upper)
    sigma = replace(sigma, value=value, lower=lower, upper=upper, confidence=confidence)
    return Norms(settled(norm), error, sigma, reason)


def _frobenius(op: Operator) -> tuple[Operator, Tensor, Tensor]:
    """The operator with extreme entries brought near 1, its ||M||_F (N,), and the powers of two (N,) that
    were taken out."""
    norm = flat(op.frobenius_squared().sqrt(), op)
    size = torch.ones_like(norm)
    extreme = ~((norm > 1e-12) & (norm < 1e12))
    if not bool(extreme.any()):
        return op, norm, size
    power = torch.exp2(flat(op.exponent(), op).double())
    size = torch.where(extreme & power.isfinite() & (power > 0), power, 1.0)
    op = op.scaled((1 / size).reshape(op.batch_shape))
    return op, flat(op.frobenius_squared().sqrt(), op), size


def _reasons(norm: Tensor) -> tuple[str | None, ...]:
    return tuple(ZERO if x == 0 else None if x < torch.inf else NOT_FINITE for x in norm.tolist())


def _groups(op: Operator) -> list[tuple[int, int]]:
    """Slices of the first batch dimension that stay in a cache together; on an accelerator, everything at
    once."""
    if not op.batch_shape:
        return [(0, 1)]
    length = op.batch_shape[0]
    own = sum(leaf[0].numel() for leaf in op.leaves if leaf.ndim > 2 and leaf.shape[0] > 1)
    step = length if op.device.type != "cpu" or not own else max(1, GROUP // own)
    return [(i, min(i + step, length)) for i in range(0, length, step)]


def _joined(parts: list[Norms]) -> Norms:
    if len(parts) == 1:
        return parts[0]
    sigmas = [part.sigma for part in parts]
    tensors = {
        name: torch.cat([getattr(s, name) for s in sigmas])
        for name in ("value", "lower", "upper", "confidence")
    }
    method = next((s.method for s in sigmas if s.method != "none"), "none")
    sigma = Sigma(**tensors, method=method, products=max(s.products for s in sigmas))
    return Norms(
        torch.cat([part.frobenius for part in parts]),
        torch.cat([part.error for part in parts]),
        sigma,
        tuple(r for part in parts for r in part.reason),
    )
