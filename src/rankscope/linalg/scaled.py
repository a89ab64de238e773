"""Operators whose rows or columns are scaled: DoRA, and what else normalises a weight by row."""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.operator import Operator, broadcast, exponent, lift, select


class RowScaled(Operator):
    """diag(d) M, d (*batch, m): DoRA's W' is RowScaled(Dense(W) + LowRank(...), magnitude /
    row_norms)."""

    def __init__(self, M: Operator, d: Tensor) -> None:
        if d.shape[-1] != M.shape[-2]:
            raise ValueError(
                f"RowScaled needs one scale per row of {tuple(M.shape)}; got scales "
                f"{tuple(d.shape)}."
            )
        self.M, self.d = M, lift(d.detach(), len(M.batch_shape), core=1)
        batch = broadcast(M.batch_shape, self.d.shape[:-1])
        self._shape = torch.Size((*batch, *M.shape[-2:]))

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
    def mT(self) -> ColumnScaled:
        return ColumnScaled(self.M.mT, self.d)

    def matvec(self, x: Tensor) -> Tensor:
        return self.M.matvec(x) * self.d.to(x.dtype)

    def matmul(self, X: Tensor) -> Tensor:
        Y = self.M.matmul(X)
        return Y * self.d[..., None].to(Y.dtype)

    def rows(self, start: int, stop: int) -> RowScaled:
        return RowScaled(self.M.rows(start, stop), self.d[..., start:stop])

    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        target = torch.empty_like(out) if add else out
        self.M.rows_into(target, start)
        target *= self.d[..., start : start + out.shape[-2], None]
        if add:
            out += target

    def cast(self, dtype: torch.dtype) -> RowScaled:
        return RowScaled(self.M.cast(dtype), self.d)

    def scaled(self, factor: Tensor) -> RowScaled:
        return RowScaled(self.M.scaled(factor), self.d)

    def balanced(self) -> RowScaled:
        power = torch.exp2(exponent(self.d, 1).double())
        return RowScaled(self.M.scaled(power).balanced(), self.d.double() / power[..., None])

    def used_rank(self) -> Tensor:
        return self.M.used_rank().expand(self.batch_shape)

    def select(self, index: Tensor, batch: torch.Size, r: int | None = None) -> RowScaled:
        return RowScaled(self.M.select(index, batch, r), select(self.d, index, batch, core=1))

    def lifted(self, ndim: int) -> RowScaled:
        return RowScaled(self.M.lifted(ndim), self.d)

    def magnitude(self) -> Tensor:
        return self.M.magnitude() * self.d.double().abs().amax(-1)

    def exponent(self) -> Tensor:
        return self.M.exponent() + exponent(self.d, 1)


class ColumnScaled(Operator):
    """M diag(d), d (*batch, n): the transpose of a RowScaled."""

    def __init__(self, M: Operator, d: Tensor) -> None:
        self.M, self.d = M, lift(d.detach(), len(M.batch_shape), core=1)
        batch = broadcast(M.batch_shape, self.d.shape[:-1])
        self._shape = torch.Size((*batch, *M.shape[-2:]))

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
    def mT(self) -> RowScaled:
        return RowScaled(self.M.mT, self.d)

    def matvec(self, x: Tensor) -> Tensor:
        return self.M.matvec(x * self.d.to(x.dtype))

    def matmul(self, X: Tensor) -> Tensor:
        return self.M.matmul(X * self.d[..., None].to(X.dtype))

    def rows(self, start: int, stop: int) -> ColumnScaled:
        return ColumnScaled(self.M.rows(start, stop), self.d)

    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        target = torch.empty_like(out) if add else out
        self.M.rows_into(target, start)
        target *= self.d[..., None, :]
        if add:
            out += target

    def cast(self, dtype: torch.dtype) -> ColumnScaled:
        return ColumnScaled(self.M.cast(dtype), self.d)

    def scaled(self, factor: Tensor) -> ColumnScaled:
        return ColumnScaled(self.M.scaled(factor), self.d)

    def balanced(self) -> ColumnScaled:
        power = torch.exp2(exponent(self.d, 1).double())
        return ColumnScaled(self.M.scaled(power).balanced(), self.d.double() / power[..., None])

    def used_rank(self) -> Tensor:
        return self.M.used_rank().expand(self.batch_shape)

    def select(self, index: Tensor, batch: torch.Size, r: int | None = None) -> ColumnScaled:
        return ColumnScaled(self.M.select(index, batch, r), select(self.d, index, batch, core=1))

    def lifted(self, ndim: int) -> ColumnScaled:
        return ColumnScaled(self.M.lifted(ndim), self.d)

    def magnitude(self) -> Tensor:
        return self.M.magnitude() * self.d.double().abs().amax(-1)

    def exponent(self) -> Tensor:
        return self.M.exponent() + exponent(self.d, 1)
