"""An update s B A cut to rank k, and how far the rounded factors lie from it: docs/math.md, (22)
and (23).

Letters: m rows, n columns, r stored rank, k kept rank, p = min(m, n, r), *batch leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rankscope.linalg.factors import triplets_and_magnitude
from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.rounding import gamma


@dataclass(frozen=True)
class Truncation:
    """dW = U diag(sigma) V^T with U (*batch, m, p), sigma (*batch, p) descending and above zero at
    its head, V (*batch, n, p), float64. ``magnitude``: (*batch), |s| ||B||_F ||A||_F, ``r`` the
    rank of these factors; by both the rounding of U, sigma and V is bounded."""

    U: Tensor
    sigma: Tensor
    V: Tensor
    magnitude: Tensor
    r: int

    @classmethod
    def of(cls, update: LowRank) -> Truncation:
        """From the factors, by QR and a small SVD."""
        return cls(*triplets_and_magnitude(update), update.A.shape[-2])

    def select(self, index: list[int]) -> Truncation:
        """Those at ``index`` of a flat batch."""
        if index == list(range(len(self.sigma))):
            return self
        U, sigma, V, magnitude = (x[index] for x in (self.U, self.sigma, self.V, self.magnitude))
        return Truncation(U, sigma, V, magnitude, self.r)

    @cached_property
    def tail(self) -> Tensor:
        """(*batch, p + 1): the relative Frobenius error of exact factors of rank 0, 1, ..., p."""
        energy = self._shares.square().flip(-1).cumsum(-1).flip(-1)
        energy = torch.nn.functional.pad(energy, (0, 1))
        return (energy / energy[..., :1]).sqrt()

    @property
    def _shares(self) -> Tensor:
        return self.sigma / self.sigma[..., :1]

    def factors(
        self, k: int, scale: Tensor, dtypes: tuple[torch.dtype, torch.dtype]
    ) -> tuple[Tensor, Tensor]:
        """B (*batch, m, k) and A (*batch, k, n), equally large, with ``scale`` B A = U_k Sigma_k
        V_k^T but for their rounding to ``dtypes``. ``scale``: (*batch) float64, not zero."""
        root = (self.sigma[..., :k] / scale.abs()[..., None]).sqrt()[..., None, :]
        B = self.U[..., :k] * (root * scale.sign()[..., None, None])
        A = (self.V[..., :k] * root).mT
        return B.to(dtypes[0]).contiguous(), A.to(dtypes[1]).contiguous()

    def errors(self, B: Tensor, A: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rounded factors B (*batch, m, k), A (*batch, k, n): ||dW - scale B A|| / ||dW|| in
        Frobenius and in spectral norm, and how far either may be off, each (*batch) float64.

        From the Gram matrices of P and Q, whose product P Q^T is the difference: see ``_grams``.
        """
        G, H = self._grams(B, A, scale)
        p, q = (X.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt() for X in (G, H))
        live = (p > 0) & (q > 0)
        t = torch.where(live, (q / p.where(live, 1)).sqrt(), 0.0)
        G = G * t[..., :, None] * t[..., None, :]  # columns of P as long as those of Q
        t = torch.where(live, 1 / t.where(live, 1), 0.0)
        H = H * t[..., :, None] * t[..., None, :]
        squared, spectral = (G * H).sum((-2, -1)).clamp(min=0), _largest(G, H).sqrt()
        room = gamma(4 * (B.shape[-2] + A.shape[-1] + self.r + A.shape[-2]))
        # of the squares; what moves the larger norm moves the smaller one at least as far
        squares = room * (p * q).sum(-1).square()
        ends = (spectral.square() + squares).sqrt() + spectral
        moved = squares / ends.clamp(min=torch.finfo(ends.dtype).tiny)
        uncertainty = moved + room * self.magnitude / self.sigma[..., 0]
        norm = torch.linalg.vector_norm(self._shares, dim=-1)
        return squared.sqrt() / norm, spectral, uncertainty

    def _grams(self, B: Tensor, A: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """P^T P and Q^T Q (*batch, p + k, p + k) of the difference, divided by sigma_1.

        What was cut and what rounding moved have columns of their own, so that nothing large
        cancels: P = [U_rest R_rest, -U_k R_k, -E], Q = [V_rest R_rest, F, V_k R_k + F], where
        R = (Sigma / sigma_1)^(1/2), and E and F are what rounding added to U_k R_k and V_k R_k.
        U^T U = V^T V = I leaves products with E and F to be formed.
        """
        k = A.shape[-2]
        share = (scale.abs() / self.sigma[..., 0]).sqrt()[..., None, None]
        root = self._shares.sqrt()[..., None, :]
        E = B.double() * (share * scale.sign()[..., None, None])
        F = A.mT.double() * share
        E = E.addcmul_(self.U[..., :k], root[..., :k], value=-1)
        F = F.addcmul_(self.V[..., :k], root[..., :k], value=-1)
        X, Y = (W.mT @ D * root.mT for W, D in ((self.U, E), (self.V, F)))
        N, M = E.mT @ E, F.mT @ F
        S = torch.diag_embed(self._shares)
        rest, kept, none = S[..., k:, k:], S[..., :k, :k], S[..., k:, :k]
        Xr, Xk, Yr, Yk = X[..., k:, :], X[..., :k, :], Y[..., k:, :], Y[..., :k, :]
        G = [[rest, none, -Xr], [none.mT, kept, Xk], [-Xr.mT, Xk.mT, N]]
        H = [[rest, Yr, Yr], [Yr.mT, M, Yk.mT + M], [Yr.mT, Yk + M, kept + Yk + Yk.mT + M]]
        together = [torch.cat([torch.cat(row, -1) for row in blocks], -2) for blocks in (G, H)]
        return together[0], together[1]


def _largest(G: Tensor, H: Tensor) -> Tensor:
    """The largest eigenvalue of G H, both positive semidefinite: of G^(1/2) H G^(1/2)."""
    values, X = torch.linalg.eigh(G)
    root = X * values.clamp(min=0).sqrt()[..., None, :]
    return torch.linalg.eigvalsh(root.mT @ H @ root)[..., -1].clamp(min=0)
