"""The exact spectrum of s B A from the r x r core of two QR factorisations:
docs/math.md, (8). Float64 throughout.

Letters: m rows, n columns, r rank, p = min(m, r), q = min(n, r), *batch leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.operator import exponent
from rankscope.linalg.rounding import sized


@dataclass(frozen=True)
class Spectrum:
    """All that can differ from zero, float64: `sigma` (*batch, min(m, n, r)) descending,
    `frobenius` and `magnitude` (*batch), the last |s| ||B||_F ||A||_F; all of them divided by
    `size` (*batch). NaN where the factors are not finite."""

    sigma: Tensor
    frobenius: Tensor
    magnitude: Tensor
    size: Tensor


def spectrum(op: LowRank) -> Spectrum:
    """From one core: norms and singular values, each to a small multiple of u times the
    magnitude."""
    C, size, magnitude = _core(op)
    frobenius = torch.linalg.matrix_norm(C)
    sigma = torch.linalg.svdvals(torch.nan_to_num(C))
    batch = op.batch_shape
    sigma = torch.where(frobenius.isfinite()[..., None], sigma, torch.nan).expand(
        *batch, sigma.shape[-1]
    )
    return Spectrum(sigma, *(x.expand(batch) for x in (frobenius, magnitude, size)))


def frobenius_norm(op: LowRank) -> Tensor:
    """||s B A||_F, (*batch) float64."""
    C, size, _ = _core(op)
    return sized(torch.linalg.matrix_norm(C), size).expand(op.batch_shape)


def singular_vectors(op: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """U (*batch, m, p'), sigma (*batch, p'), V (*batch, n, p') of s B A, with p' = min(m, n, r)."""
    left, sigma, right, _ = decomposition(op)
    count = sigma.shape[-1]
    return left.first(count), sigma, right.first(count)


@dataclass(frozen=True)
class Directions:
    """Orthonormal columns Q P, formed where they are asked for: Q (*batch, m, p) as Householder
    vectors ``a`` and ``tau`` (LAPACK's geqrf), P (*batch, p, p')."""

    a: Tensor
    tau: Tensor
    P: Tensor

    def first(self, k: int) -> Tensor:
        """The leading k, (*batch, m, k): 4 m p k operations, a third of what Q and Q P take for
        the few that a cut keeps."""
        P = self.P[..., :k]
        padded = torch.zeros(*P.shape[:-2], self.a.shape[-2], k, dtype=P.dtype, device=P.device)
        padded[..., : P.shape[-2], :] = P
        return torch.ormqr(self.a, self.tau, padded)

    def select(self, index: list[int]) -> Directions:
        """Those at ``index`` of a flat batch."""
        return Directions(self.a[index], self.tau[index], self.P[index])


def decomposition(op: LowRank) -> tuple[Directions, Tensor, Directions, Tensor]:
    """s B A = U diag(sigma) V^T as U, sigma (*batch, p'), V, and |s| ||B||_F ||A||_F (*batch), by
    which their rounding is bounded."""
    B, size_B = _widened(op.B)
    A, size_A = _widened(op.A)
    left, right = (torch.geqrf(X) for X in (B, A.mT))
    R_B, R_A = (a[..., : tau.shape[-1], :].triu() for a, tau in (left, right))
    P, sigma, Qh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    size = size_B * size_A * op.scale
    P = P * size.sign()[..., None, None]
    magnitude = torch.linalg.matrix_norm(R_B) * torch.linalg.matrix_norm(R_A) * size.abs()
    batch = op.batch_shape
    U, V = (
        Directions(
            a[..., : tau.shape[-1]].expand(*batch, -1, -1), tau.expand(*batch, -1),
            X.expand(*batch, -1, -1),
        )
        for (a, tau), X in ((left, P), (right, Qh.mT))
    )  # fmt: skip
    return U, (sigma * size.abs()[..., None]).expand(*batch, -1), V, magnitude.expand(batch)


def _core(op: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """(C, size, magnitude): the singular values of s B A are `size` times those of C, (*batch, p,
    q), whose entries are near 1; so is `magnitude`, |s| ||B||_F ||A||_F / size."""
    R_B, size_B, own_B = _triangle(op.B)  # (*batch, p, r)
    R_A, size_A, own_A = _triangle(op.A.mT)  # (*batch, q, r)
    share, power = torch.frexp(op.scale.abs())
    magnitude = torch.linalg.matrix_norm(R_B) * torch.linalg.matrix_norm(R_A) * share
    return (
        R_B @ R_A.mT * share[..., None, None],
        # in this order: a norm of B or A alone may lie outside float64's range
        (size_B * size_A) * (own_B * own_A) * torch.exp2(power.double()),
        magnitude,
    )


def _triangle(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R of X = Q R divided by two powers of two, with entries near 1, and these. A wide X is its
    own R.

    ``geqrf`` is what ``torch.linalg.qr`` calls, which then copies all of X for its triangle.
    """
    wide, size = _widened(X)
    rows, r = X.shape[-2:]
    R, own = _balanced(torch.geqrf(wide).a[..., :r, :].triu() if rows > r else wide)
    return R, size, own


def _widened(X: Tensor) -> tuple[Tensor, Tensor]:
    """X in float64, divided by a power of two where its own squares could overflow, and that
    power. Those of narrower dtypes cannot."""
    if X.dtype == torch.float64:
        return _balanced(X)
    return X.double(), torch.ones((), dtype=torch.float64, device=X.device)


def _balanced(X: Tensor) -> tuple[Tensor, Tensor]:
    """X divided by a power of two near its largest entry, and that power, both float64: exact,
    and no square can overflow."""
    size = torch.exp2(exponent(X, 2).double())
    return X.double() / size[..., None, None], size
