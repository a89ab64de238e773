"""The operator of a matrix whose rows or columns are scaled: DoRA, and whatever else normalises a
weight by row."""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.operator import Operator, broadcast, exponent, lift, select

ROWS, COLUMNS = -2, -1


class Scaled(Operator):
    """diag(d) M with d (*batch, m) for dim = -2, M diag(d) with d (*batch, n) for dim = -1.

    DoRA's W' is Scaled(Dense(W) + LowRank(...), magnitude / row_norms).
    """

    def __init__(self, M: Operator, d: Tensor, *, dim: int = ROWS) -> None:
        if dim not in (ROWS, COLUMNS) or d.shape[-1] != M.shape[dim]:
            raise ValueError(
                f"Scaled needs one scale per row (dim=-2) or column (dim=-1) of "
                f"{tuple(M.shape)}; got scales {tuple(d.shape)} and dim={dim}."
            )
        self.M, self.d, self.dim = M, lift(d.detach(), len(M.batch_shape), core=1), dim
        batch = broadcast(M.batch_shape, self.d.shape[:-1])
        self._shape = torch.Size((*batch, *M.shape[-2:]))

    def _of(self, M: Operator, d: Tensor) -> Scaled:
        return Scaled(M, d, dim=self.dim)

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.M.leaves

    @property
    def terms(self) -> int:
        return self.M.terms

    @property
    def mT(self) -> Scaled:
        return Scaled(self.M.mT, self.d, dim=COLUMNS if self.dim == ROWS else ROWS)

    def matvec(self, x: Tensor) -> Tensor:
        d = self.d.to(x.dtype)
        return self.M.matvec(x) * d if self.dim == ROWS else self.M.matvec(x * d)

    def matmul(self, X: Tensor) -> Tensor:
        if self.dim == COLUMNS:
            return self.M.matmul(X * self.d[..., None].to(X.dtype))
        Y = self.M.matmul(X)
        return Y * self.d[..., None].to(Y.dtype)

    def rows(self, start: int, stop: int) -> Scaled:
        d = self.d[..., start:stop] if self.dim == ROWS else self.d
        return self._of(self.M.rows(start, stop), d)

    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        target = torch.empty_like(out) if add else out
        self.M.rows_into(target, start)
        if self.dim == ROWS:
            target *= self.d[..., start : start + out.shape[-2], None]
        else:
            target *= self.d[..., None, :]
        if add:
            out += target

    def cast(self, dtype: torch.dtype) -> Scaled:
        return self._of(self.M.cast(dtype), self.d)

    def scaled(self, factor: Tensor) -> Scaled:
        return self._of(self.M.scaled(factor), self.d)

    def balanced(self) -> Scaled:
        power = torch.exp2(exponent(self.d, 1).double())
        return self._of(self.M.scaled(power).balanced(), self.d.double() / power[..., None])

    def used_rank(self) -> Tensor:
        return self.M.used_rank().expand(self.batch_shape)

    def select(self, index: Tensor, batch: torch.Size, r: int | None = None) -> Scaled:
        return self._of(self.M.select(index, batch, r), select(self.d, index, batch, core=1))

    def lifted(self, ndim: int) -> Scaled:
        return self._of(self.M.lifted(ndim), self.d)

    def magnitude(self) -> Tensor:
        return self.M.magnitude() * self.d.double().abs().amax(-1)

    def exponent(self) -> Tensor:
        return self.M.exponent() + exponent(self.d, 1)
