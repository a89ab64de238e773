"""Sums and differences of operators."""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.operator import Operator
from rankscope.linalg.shapes import broadcast


class Sum(Operator):
    """left + right; write it as `left + right` or `left - right`."""

    def __init__(self, left: Operator, right: Operator) -> None:
        self.left, self.right = left, right
        batch = broadcast(left.batch_shape, right.batch_shape)
        self._shape = torch.Size((*batch, *left.shape[-2:]))

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.left.leaves + self.right.leaves

    @property
    def terms(self) -> int:
        return self.left.terms + self.right.terms

    @property
    def mT(self) -> Sum:
        return Sum(self.left.mT, self.right.mT)

    def matvec(self, x: Tensor) -> Tensor:
        return self.left.matvec(x) + self.right.matvec(x)

    def matmul(self, X: Tensor) -> Tensor:
        return self.left.matmul(X) + self.right.matmul(X)

    def rows(self, start: int, stop: int) -> Sum:
        return Sum(self.left.rows(start, stop), self.right.rows(start, stop))

    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        self.left.rows_into(out, start, add=add)
        self.right.rows_into(out, start, add=True)

    def cast(self, dtype: torch.dtype) -> Sum:
        return Sum(self.left.cast(dtype), self.right.cast(dtype))

    def scaled(self, factor: Tensor) -> Sum:
        return Sum(self.left.scaled(factor), self.right.scaled(factor))

    def balanced(self) -> Sum:
        return Sum(self.left.balanced(), self.right.balanced())

    def live(self) -> Tensor:
        return torch.maximum(self.left.live(), self.right.live())

    def at(self, index: Tensor, batch: torch.Size, r: int | None = None) -> Sum:
        return Sum(self.left.at(index, batch, r), self.right.at(index, batch, r))

    def lifted(self, ndim: int) -> Sum:
        return Sum(self.left.lifted(ndim), self.right.lifted(ndim))

    def magnitude(self) -> Tensor:
        return self.left.magnitude() + self.right.magnitude()

    def exponent(self) -> Tensor:
        return torch.maximum(self.left.exponent(), self.right.exponent()) + 1


def added(left: Operator, right: Operator) -> Operator:
    """left + right, batches aligned; two LowRank stay one LowRank, so that they stay exact."""
    if left.shape[-2:] != right.shape[-2:]:
        raise ValueError(
            f"a sum needs two matrices of one shape (m, n); got {tuple(left.shape)} and "
            f"{tuple(right.shape)}. GPT-2's Conv1D stores (in, out): use its transpose, .mT."
        )
    ndim = max(len(left.batch_shape), len(right.batch_shape))
    left, right = left.lifted(ndim), right.lifted(ndim)
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        return _concatenated(left, right)
    return Sum(left, right)


def _concatenated(left: LowRank, right: LowRank) -> LowRank:
    """[s B, s' B'] [A; A']; scales folded in, in float64."""
    Bs, As = [], []
    batch = broadcast(left.batch_shape, right.batch_shape)
    for op in (left, right):
        B = op.B.double() * op.scale[..., None, None]
        Bs.append(B.expand(*batch, *B.shape[-2:]))
        As.append(op.A.double().expand(*batch, *op.A.shape[-2:]))
    return LowRank(B=torch.cat(Bs, dim=-1), A=torch.cat(As, dim=-2))
