"""An update s B A truncated to rank k, and the error of the rounded factors: docs/math.md, (22) and
(23).

Letters: m rows, n columns, r stored rank, k kept rank, p = min(m, n, r), *batch leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rankscope.linalg.low_rank import Directions, LowRank, decomposition
from rankscope.linalg.rounding import gamma


@dataclass(frozen=True)
class Truncation:
    """dW = U diag(sigma) V^T with U (*batch, m, p), sigma (*batch, p) descending, its first entry
    above zero, and V (*batch, n, p), float64. ``magnitude`` (*batch) is |s| ||B||_F ||A||_F, and
    ``r`` the rank of these factors; both bound the rounding of U, sigma and V."""

    left: Directions
    sigma: Tensor
    right: Directions
    magnitude: Tensor
    r: int

    @classmethod
    def of(cls, update: LowRank) -> Truncation:
        """From the factors, by QR and a small SVD."""
        return cls(*decomposition(update), update.A.shape[-2])

    def select(self, index: list[int]) -> Truncation:
        """The truncations at ``index`` of a flat batch."""
        if index == list(range(len(self.sigma))):
            return self
        left, right = self.left.select(index), self.right.select(index)
        return Truncation(left, self.sigma[index], right, self.magnitude[index], self.r)

    @cached_property
    def U(self) -> Tensor:
        """All left singular vectors."""
        return self.left.first(self.sigma.shape[-1])

    @cached_property
    def V(self) -> Tensor:
        """All right singular vectors."""
        return self.right.first(self.sigma.shape[-1])

    @cached_property
    def tail(self) -> Tensor:
        """(*batch, p + 1): the relative Frobenius error of exact factors of rank 0, 1, ..., p."""
        energy = self._shares.square().flip(-1).cumsum(-1).flip(-1)
        energy = torch.nn.functional.pad(energy, (0, 1))
        return (energy / energy[..., :1]).sqrt()

    @property
    def _shares(self) -> Tensor:
        return self.sigma / self.sigma[..., :1]

    def cut(
        self, k: int, scale: Tensor, dtypes: tuple[torch.dtype, torch.dtype]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """B (*batch, m, k) and A (*batch, k, n), of equal size, with ``scale`` B A = U_k Sigma_k
        V_k^T up to their rounding to ``dtypes``; and, of the rounded factors, ||dW - scale B A|| /
        ||dW|| in Frobenius and in spectral norm, with a bound on the error of either, each (*batch)
        float64. ``scale``: (*batch) float64, not zero.

        Errors are NaN where a factor leaves the range of its dtype. Where the dtypes round little,
        as float32 does, the sums of what was cut are the errors to that precision (``_nearly``).
        Else they are found from Gram matrices (``_from_grams``).
        """
        root = (self.sigma[..., :k] / scale.abs()[..., None]).sqrt()[..., None, :]
        wide_B = self.left.first(k) * (root * scale.sign()[..., None, None])
        wide_A = self.right.first(k) * root  # (*batch, n, k)
        B, A = wide_B.to(dtypes[0]), wide_A.mT.to(dtypes[1], memory_format=torch.contiguous_format)
        share = (scale.abs() / self.sigma[..., 0]).sqrt()
        moved_B, moved_A = wide_B - B, wide_A - A.mT  # in float64
        e, f = (share * torch.linalg.matrix_norm(X) for X in (moved_B, moved_A))
        room = gamma(4 * (B.shape[-2] + A.shape[-1] + self.r + k))
        if not bool((e + f).isfinite().all()):  # beyond the dtypes' range
            return (B, A), (e * torch.nan,) * 3
        found = self._nearly(k, e, f)
        if found is None or not bool((found[2] <= room / 4).all()):
            share = share[..., None, None]
            found = self._from_grams(
                moved_B * (share * -scale.sign()[..., None, None]), moved_A * -share, room
            )
        squared, spectral, off = found
        norm = torch.linalg.vector_norm(self._shares, dim=-1)
        uncertainty = off + room * self.magnitude / self.sigma[..., 0]
        return (B, A), (squared.sqrt() / norm, spectral, uncertainty)

    def _nearly(self, k: int, e: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """||D||_F^2, ||D||_2 and how far either norm may be off, by (23a), of the difference D
        divided by sigma_1; ``e``, ``f``: ||E||_F, ||F||_F. None where nothing is cut."""
        if k == self.sigma.shape[-1]:
            return None
        cut = self._shares[..., k:]
        top, energy = cut[..., 0], cut.square().sum(-1)
        moved, inner = e + f + e * f, e * f
        low = (energy - 2 * top * inner).clamp(min=0)
        high = energy + moved.square() + 2 * top * inner
        beside, under, below = (1 + e) * f, e * (1 + f), top + inner
        total = moved.square() + beside.square() + under.square() + below.square()
        minor = moved * below - beside * under
        ends = ((total + (total.square() - 4 * minor.square()).clamp(min=0).sqrt()) / 2).sqrt()
        start = (top - inner).clamp(min=0)
        off = torch.maximum(high.sqrt() - low.sqrt(), ends - start) / 2
        return ((low.sqrt() + high.sqrt()) / 2).square(), (start + ends) / 2, off

    def _from_grams(self, E: Tensor, F: Tensor, room: float) -> tuple[Tensor, Tensor, Tensor]:
        """The same, from the Gram matrices of P and Q, whose product P Q^T is the difference:
        see ``_grams``."""
        G, H = self._grams(E, F)
        p, q = (X.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt() for X in (G, H))
        live = (p > 0) & (q > 0)
        t = torch.where(live, (q / p.where(live, 1)).sqrt(), 0.0)
        G = G * t[..., :, None] * t[..., None, :]  # columns of P as long as those of Q
        t = torch.where(live, 1 / t.where(live, 1), 0.0)
        H = H * t[..., :, None] * t[..., None, :]
        squared, spectral = (G * H).sum((-2, -1)).clamp(min=0), _largest(G, H).sqrt()
        # of the squares; what moves the larger norm moves the smaller one at least as far
        squares = room * (p * q).sum(-1).square()
        ends = (spectral.square() + squares).sqrt() + spectral
        return squared, spectral, squares / ends.clamp(min=torch.finfo(ends.dtype).tiny)

    def _grams(self, E: Tensor, F: Tensor) -> tuple[Tensor, Tensor]:
        """P^T P and Q^T Q (*batch, p + k, p + k) of the difference, divided by sigma_1.

        What was cut and what rounding moved have columns of their own, so that nothing large
        cancels: P = [U_rest R_rest, -U_k R_k, -E], Q = [V_rest R_rest, F, V_k R_k + F], where
        R = (Sigma / sigma_1)^(1/2), and E and F are what rounding added to U_k R_k and V_k R_k.
        U^T U = V^T V = I leaves products with E and F to be formed.
        """
        k = E.shape[-1]
        root = self._shares.sqrt()[..., None, :]
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
