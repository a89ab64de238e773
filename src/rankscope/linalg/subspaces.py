"""Compares two updates: shared singular subspaces, captured energy, intruder dimensions.

Letters: m rows, n columns, k leading singular vectors, *batch leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg import low_rank
from rankscope.linalg.dense import as_operator
from rankscope.linalg.frobenius import frobenius_squared
from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import undisturbed


@undisturbed
def singular_subspaces(M: Tensor | Operator, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (*batch, m, k), sigma (*batch, k), V (*batch, n, k), float64: the k leading singular
    triplets.

    A LowRank's come from its factors, where k may not exceed min(m, n, r); anything else is formed.
    """
    op = as_operator(M)
    limit = min(op.shape[-2:])
    if isinstance(op, LowRank):
        limit = min(limit, op.A.shape[-2])
        U, sigma, V = low_rank.singular_vectors(op)
    else:
        U, sigma, Vh = torch.linalg.svd(_finite(op.to_dense()), full_matrices=False)
        V = Vh.mT
    if not 1 <= k <= limit:
        raise ValueError(
            f"k must lie in 1 .. {limit}, the number of singular values of {op}; got {k}."
        )
    return U[..., :k], sigma[..., :k], V[..., :k]


@undisturbed
def principal_angles(
    U: Tensor | Operator, V: Tensor | Operator, *, k: int | None = None, side: str = "left"
) -> Tensor:
    """Angles in radians, ascending, (*batch, k) float64, between two subspaces: docs/math.md, (18).

    Without k, U and V are tensors (*batch, m, k) whose columns span them (orthonormal or not, of
    full rank). With k they are two matrices or operators, of which the k leading left ("left") or
    right ("right") singular vectors are taken. Small angles come from their sines (Bjorck and Golub
    1973), so that 1e-10 is not read as 0.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right'; got {side!r}.")
    if k is not None:
        pick = 0 if side == "left" else 2
        X, Y = (singular_subspaces(M, k)[pick] for M in (U, V))
    elif isinstance(U, Tensor) and isinstance(V, Tensor):
        X, Y = (torch.linalg.qr(_finite(M.double())).Q for M in (U, V))
    else:
        raise ValueError(
            "principal_angles of two operators needs k=, the number of leading singular vectors."
        )
    cosines = torch.linalg.svdvals(X.mT @ Y).clamp(max=1)
    sines = torch.linalg.svdvals(Y - X @ (X.mT @ Y)).clamp(max=1).flip(-1)[..., : cosines.shape[-1]]
    return torch.where(cosines**2 < 0.5, cosines.acos(), sines.asin())


@undisturbed
def captured_energy(dW: Tensor | Operator, reference: Tensor | Operator, k: int) -> float | Tensor:
    """||U^T R V||_F^2 / ||R||_F^2 in [0, 1]: the share of the reference's energy inside
    the k leading left and right singular subspaces of dW; NaN where the reference is
    zero. docs/math.md, (19)."""
    U, _, V = singular_subspaces(dW, k)
    R = as_operator(reference)
    R = R.scaled(torch.exp2(-R.exponent().double()))  # no square leaves float64's range
    inside = torch.linalg.matrix_norm(U.mT @ (R @ V)).square()
    share = inside / frobenius_squared(R)
    return float(share) if share.ndim == 0 else share.cpu()


@undisturbed
def intruder_dimensions(
    W: Tensor | Operator, dW: Tensor | Operator, k: int = 10, threshold: float = 0.5
) -> int | Tensor:
    """How many of the k leading left singular vectors of W + dW have a cosine below `threshold` in
    absolute value with every left singular vector of W (Shuttleworth et al. 2024): an int, or
    (*batch) int64. docs/math.md, (21)."""
    base, update = as_operator(W), as_operator(dW)
    U = torch.linalg.svd(_finite(base.to_dense()), full_matrices=False).U
    X, _, _ = singular_subspaces(base + update, min(k, *base.shape[-2:]))
    nearest = (U.mT @ X).abs().amax(-2)
    count = (nearest < threshold).sum(-1)
    return int(count) if count.ndim == 0 else count.cpu()


def _finite(X: Tensor) -> Tensor:
    if not bool(X.isfinite().all()):
        raise ValueError(f"expected a finite matrix; {tuple(X.shape)} has NaN or infinite entries.")
    return X
