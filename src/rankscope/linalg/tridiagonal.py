"""Bounds on sigma_1 from the Lanczos matrix T_k: a Ritz value below it, two bounds above it.
docs/math.md, (9) to (14).

Letters: N matrices, k steps taken, G trial values t of sigma^2; a (N, k) diagonal and b (N, k)
couplings of T_k, the last of which leads to the next vector; ``steps`` (N,) says how many of the k
belong to each matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

GRID = 64  # trial values per refinement: two rounds find t - theta to 1 % of itself
# log of the smallest (t - theta) / (||M||_F^2 - theta) tried: below float64's rounding
FLOOR = -35.0


@dataclass(frozen=True)
class Tridiagonal:
    """T_k of N matrices, and what the bounds need beside it. All tensors float64 on the CPU.

    frobenius, allowance, below, log_target (N,): a bound on ||M||_F; what rounding may add to
    sigma_1, and what it takes from the lower bound (10); log(||g|| / delta) of (12).
    """

    a: Tensor
    b: Tensor
    steps: Tensor
    frobenius: Tensor
    allowance: Tensor
    below: Tensor
    log_target: Tensor

    @cached_property
    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (N, k) of T_steps, ascending and 0 or more, and unit eigenvectors (N, k, k)
        as columns, 0 beyond `steps`; -inf and without meaning where there are fewer than k."""
        values, vectors = torch.linalg.eigh(self._matrix())
        k = self.a.shape[1]
        return torch.where(
            torch.arange(k) < k - self.steps[:, None], -torch.inf, values.clamp(min=0)
        ), vectors

    @property
    def top(self) -> tuple[Tensor, Tensor]:
        """The largest eigenvalue (N,), which is at most sigma_1^2, and its eigenvector (N, k)."""
        values, vectors = self.ritz
        return values[:, -1], vectors[..., -1]

    def within(self, rtol: Tensor, *, least: float) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) bool: is an upper bound, rounding allowed for, at most (1 + rtol) times the lower
        bound? (N,) bool: is the allowance more than half of that room? And (N,): what (12) asks of
        log p_k, over its value there. The room is at least `least` allowances."""
        theta = self.top[0].sqrt()
        room = rtol * (theta - self.below) - self.below
        room = torch.maximum(room, least * self.allowance)
        certain, growth = self._holds(
            (theta + room - self.allowance).clamp(min=0).square()[:, None]
        )
        tight = self.allowance > room / 2
        ahead = torch.nan_to_num(
            self.log_target / growth[:, 0].clamp(min=1e-3), torch.inf, torch.inf
        )
        return (certain | self._likely(growth))[:, 0] & ~tight, tight, ahead

    def upper(self, rtol: Tensor) -> tuple[Tensor, Tensor]:
        """Upper bounds on sigma_1 (N,), rounding allowed for, and whether each is certain (N,)
        bool.

        The certain bound is used where it meets `rtol` or is the smaller one; no bound is above
        ||M||_F.
        """
        theta = self.top[0]
        span = (self.frobenius.square() - theta).clamp(min=0)
        low, high = (
            torch.full((len(theta), 2), FLOOR, dtype=torch.float64),
            torch.zeros(len(theta), 2).double(),
        )
        for _ in range(2):
            grid = torch.lerp(
                low[..., None], high[..., None], torch.linspace(0, 1, GRID, dtype=torch.float64)
            )
            # (N, 2 G): one half for each bound
            t = theta[:, None] + span[:, None] * grid.flatten(1).exp()
            certain, growth = self._holds(t)
            holds = torch.stack(
                [certain[:, :GRID], self._likely(growth)[:, GRID:]], dim=1
            )  # (N, 2, G)
            first = holds.double().argmax(-1, keepdim=True)  # 0 where none holds
            first = torch.where(holds.any(-1, keepdim=True), first, GRID - 1)
            low, high = (grid.gather(-1, i)[..., 0] for i in ((first - 1).clamp(min=0), first))
        bounds = (theta[:, None] + span[:, None] * high.exp()).sqrt() + self.allowance[:, None]
        sure, likely = torch.minimum(bounds, self.frobenius[:, None]).unbind(1)
        use = (sure <= theta.sqrt() * (1 + rtol)) | (sure <= likely)
        return torch.where(use, sure, likely), use

    def _holds(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """For trial values t (N, G): is sigma_1^2 <= t certainly (14)? And log p_k(t) of (12), -inf
        where t lies not above the Ritz values.

        With T_k = S diag(theta) S^T: log p_k(t) = sum log(t - theta_i) - sum log b_j, and
        1 / d_k = sum S_ki^2 / (t - theta_i) is the last entry of (t I - T_k)^-1.
        """
        values, vectors = self.ritz
        gaps = t[..., None] - values[:, None]  # (N, G, k), inf where there is no Ritz value
        real = gaps < torch.inf
        above = gaps[..., -1] > 0
        logs = torch.where(real, gaps, 1.0).log().sum(-1)
        growth = logs - torch.where(self._used, self.b, 1.0).log().sum(-1, keepdim=True)
        last = vectors.gather(
            1, (self.steps - 1)[:, None, None].expand(-1, 1, vectors.shape[-1])
        )  # (N, 1, k)
        carry = self._coupling[:, None].square() * (last.square() / gaps).sum(-1)
        certain = above & (t - self._tail[:, None] - carry >= 0)
        return certain, torch.where(above, growth, -torch.inf)

    def _likely(self, growth: Tensor) -> Tensor:
        """Is sigma_1^2 <= t with the stated confidence (12)? From log p_k(t), (N, G)."""
        return growth >= self.log_target[:, None]

    @property
    def _used(self) -> Tensor:
        """(N, k) bool: the entries that belong to each matrix."""
        return torch.arange(self.a.shape[1]) < self.steps[:, None]

    @property
    def smallest_coupling(self) -> Tensor:
        """The smallest b of each matrix, (N,)."""
        return torch.where(self._used, self.b, torch.inf).amin(1)

    @property
    def _coupling(self) -> Tensor:
        """b of the last step of each matrix, (N,)."""
        return self.b.gather(1, (self.steps - 1)[:, None])[:, 0]

    @property
    def _tail(self) -> Tensor:
        """An upper bound on ||M (I - V V^T)||_F^2 = ||M||_F^2 - tr T_k, (N,)."""
        seen = torch.where(self._used, self.a, 0.0).sum(1)
        return (self.frobenius.square() - seen).clamp(min=0) + 2 * self.frobenius * self.allowance

    def _matrix(self) -> Tensor:
        """T_steps, and beyond it a diagonal below all its eigenvalues, (N, k, k)."""
        off = torch.diag_embed(torch.where(self._used[:, 1:], self.b[:, :-1], 0.0), offset=1)
        lowest = -1 - self.frobenius.square()[:, None]
        T = torch.diag_embed(torch.where(self._used, self.a, lowest)) + off + off.mT
        return torch.nan_to_num(T, 0.0, 0.0, 0.0)
