"""Matrices that are multiplied, never formed: dense, low rank, sums, and scaled rows or columns.

Letters: m rows (out), n columns (in), r rank, c columns of a multiplied block, *batch leading dimensions (broadcast
against each other as in torch; a frozen W of shape (S, 1, m, n) plus updates of shape (S, K, m, n) is stored once).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Operator(ABC):
    """A batch of (m, n) matrices, known by what it does to vectors."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(*batch, m, n)."""

    @property
    @abstractmethod
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that the operator is made of, scales excepted."""

    @property
    @abstractmethod
    def mT(self) -> Operator:
        """The transpose; shares memory."""

    @abstractmethod
    def matvec(self, x: Tensor) -> Tensor:
        """M x for one vector per matrix: (*batch, n) -> (*batch, m), in x's dtype, which must be the operator's."""

    @abstractmethod
    def matmul(self, X: Tensor) -> Tensor:
        """M X: (*batch, n, c) -> (*batch, m, c), in the wider of both dtypes, at least float32."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Operator:
        """The operator of rows start .. stop - 1; shares memory."""

    @abstractmethod
    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        """Writes (or adds) rows start .. start + h - 1 into out, (*batch, h, n) float64."""

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> Operator:
        """The same operator in `dtype`; no copy where a leaf already has it."""

    @abstractmethod
    def scaled(self, factor: Tensor) -> Operator:
        """factor * M, factor (*batch) float64."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Operator:
        """Matrices start .. stop - 1 along the first batch dimension; shares memory."""

    @abstractmethod
    def magnitude(self) -> Tensor:
        """Sum of the Frobenius norms of the products that M is added up from, (*batch) float64: docs/math.md, (5)."""

    @abstractmethod
    def exponent(self) -> Tensor:
        """(*batch) int: no entry of any term of M is as large as 2^exponent."""

    def frobenius_squared(self) -> Tensor:
        """||M||_F^2, (*batch) float64; exact to rounding, also where the terms cancel: docs/math.md, (4)."""
        from rankscope.linalg.frobenius import frobenius_squared

        return frobenius_squared(self)

    def to_dense(self) -> Tensor:
        """(*batch, m, n) float64. Forms the matrix: for tests and small ones."""
        out = torch.empty(self.shape, dtype=torch.float64, device=self.device)
        self.rows_into(out, 0)
        return out

    @property
    def batch_shape(self) -> torch.Size:
        return self.shape[:-2]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds every leaf, at least float32: what the operator computes in."""
        dtype = torch.float32
        for leaf in self.leaves:
            dtype = torch.promote_types(dtype, leaf.dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        return self.leaves[0].device

    def __matmul__(self, X: Tensor) -> Tensor:
        if X.ndim == 1:
            return self.matmul(X[:, None])[..., 0]
        return self.matmul(X)

    def __add__(self, other: Operator) -> Operator:
        return _add(self, other, 1.0)

    def __sub__(self, other: Operator) -> Operator:
        return _add(self, other, -1.0)

    def __neg__(self) -> Operator:
        return self.scaled(torch.tensor(-1.0, dtype=torch.float64))

    def __repr__(self) -> str:
        return f"{type(self).__name__}{tuple(self.shape)}"


class Dense(Operator):
    """A matrix that is held as it is: W (*batch, m, n), any floating dtype, strided as it may be."""

    def __init__(self, W: Tensor) -> None:
        if not isinstance(W, Tensor) or W.ndim < 2 or W.dtype not in FLOATS:
            found = f"{W.dtype} {tuple(W.shape)}" if isinstance(W, Tensor) else type(W).__name__
            raise ValueError(f"Dense needs a floating tensor of shape (*batch, m, n); got {found}.")
        if 0 in W.shape:
            raise ValueError(f"Dense needs a matrix with entries; got shape {tuple(W.shape)}.")
        self.W = W.detach()

    @property
    def shape(self) -> torch.Size:
        return self.W.shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.W,)

    @property
    def mT(self) -> Dense:
        return Dense(self.W.mT)

    def matvec(self, x: Tensor) -> Tensor:
        return row_products(x, self.W)

    def matmul(self, X: Tensor) -> Tensor:
        dtype = torch.promote_types(self.dtype, X.dtype)
        return self.W.to(dtype) @ X.to(dtype)

    def rows(self, start: int, stop: int) -> Dense:
        return Dense(self.W[..., start:stop, :])

    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        block = self.W[..., start : start + out.shape[-2], :]
        if add:
            out += block
        else:
            out.copy_(block)

    def cast(self, dtype: torch.dtype) -> Dense:
        return Dense(self.W.to(dtype))

    def scaled(self, factor: Tensor) -> Dense:
        factor = factor.to(self.W.device)
        return Dense((self.W.double() * factor[..., None, None]).to(self.dtype))

    def part(self, start: int, stop: int) -> Dense:
        return Dense(_part(self.W, start, stop))

    def magnitude(self) -> Tensor:
        return self.frobenius_squared().sqrt()

    def exponent(self) -> Tensor:
        return _exponent(self.W, 2)


class LowRank(Operator):
    """scale B A with B (*batch, m, r), A (*batch, r, n); scale a number or a tensor (*batch).

    Keyword-only, since the factors of a square layer could be swapped unseen. A PEFT layer holds them as
    layer.lora_B[name].weight and layer.lora_A[name].weight; its scale is layer.scaling[name].
    """

    def __init__(self, *, B: Tensor, A: Tensor, scale: float | Tensor = 1.0) -> None:
        if (
            B.ndim < 2
            or A.ndim < 2
            or B.shape[-1] != A.shape[-2]
            or B.dtype not in FLOATS
            or A.dtype not in FLOATS
        ):
            raise ValueError(
                f"LowRank needs floating B (*batch, m, r) and A (*batch, r, n) with one r; got B {tuple(B.shape)} "
                f"{B.dtype} and A {tuple(A.shape)} {A.dtype}. "
                "A PEFT layer holds them as layer.lora_B[name].weight and layer.lora_A[name].weight."
            )
        if 0 in B.shape or 0 in A.shape:
            raise ValueError(
                f"LowRank needs r >= 1 and m, n >= 1; got B {tuple(B.shape)} and A {tuple(A.shape)}."
            )
        scale = torch.as_tensor(scale, dtype=torch.float64, device=B.device).detach()
        batch = torch.broadcast_shapes(B.shape[:-2], A.shape[:-2], scale.shape)
        self.B, self.A = _lift(B.detach(), len(batch)), _lift(A.detach(), len(batch))
        self.scale = scale.reshape((1,) * (len(batch) - scale.ndim) + tuple(scale.shape))
        self._shape = torch.Size((*batch, B.shape[-2], A.shape[-1]))

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.B, self.A)

    @property
    def mT(self) -> LowRank:
        return LowRank(B=self.A.mT, A=self.B.mT, scale=self.scale)

    def matvec(self, x: Tensor) -> Tensor:
        scale = self.scale[..., None].to(x.dtype)
        return row_products(row_products(x, self.A) * scale, self.B)

    def matmul(self, X: Tensor) -> Tensor:
        dtype = torch.promote_types(self.dtype, X.dtype)
        return self.B.to(dtype) @ (self.A.to(dtype) @ X.to(dtype) * self.scale[..., None, None].to(dtype))

    def rows(self, start: int, stop: int) -> LowRank:
        return LowRank(B=self.B[..., start:stop, :], A=self.A, scale=self.scale)

    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        B = self.B[..., start : start + out.shape[-2], :].double() * self.scale[..., None, None]
        A = self.A.double()
        if add:
            out += B @ A
        elif B.ndim == A.ndim == 2:
            torch.mm(B, A, out=out)
        else:
            out.copy_(B @ A)

    def cast(self, dtype: torch.dtype) -> LowRank:
        B = (self.B.double() * self.scale[..., None, None]).to(dtype)
        return LowRank(B=B, A=self.A.to(dtype))

    def scaled(self, factor: Tensor) -> LowRank:
        return LowRank(B=self.B, A=self.A, scale=self.scale * factor.to(self.scale.device))

    def part(self, start: int, stop: int) -> LowRank:
        scale = self.scale if self.scale.shape[0] == 1 else self.scale[start:stop]
        return LowRank(B=_part(self.B, start, stop), A=_part(self.A, start, stop), scale=scale)

    def magnitude(self) -> Tensor:
        norms = [torch.linalg.matrix_norm(leaf.double()) for leaf in self.leaves]
        return (norms[0] * norms[1] * self.scale.abs()).expand(self.batch_shape)

    def exponent(self) -> Tensor:
        room = self.A.shape[-2].bit_length()
        return _exponent(self.B, 2) + _exponent(self.A, 2) + _exponent(self.scale, 0) + room


class Sum(Operator):
    """left + right; write it as `left + right` or `left - right`."""

    def __init__(self, left: Operator, right: Operator) -> None:
        self.left, self.right = left, right
        batch = torch.broadcast_shapes(left.batch_shape, right.batch_shape)
        self._shape = torch.Size((*batch, *left.shape[-2:]))

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.left.leaves + self.right.leaves

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

    def part(self, start: int, stop: int) -> Sum:
        return Sum(self.left.part(start, stop), self.right.part(start, stop))

    def magnitude(self) -> Tensor:
        return self.left.magnitude() + self.right.magnitude()

    def exponent(self) -> Tensor:
        return torch.maximum(self.left.exponent(), self.right.exponent()) + 1


class RowScaled(Operator):
    """diag(d) M, d (*batch, m): DoRA's W' is RowScaled(Dense(W) + LowRank(...), magnitude / row_norms)."""

    def __init__(self, M: Operator, d: Tensor) -> None:
        if d.shape[-1] != M.shape[-2]:
            raise ValueError(
                f"RowScaled needs one scale per row of {tuple(M.shape)}; got scales {tuple(d.shape)}."
            )
        self.M, self.d = M, _lift(d.detach(), len(M.batch_shape), core=1)
        batch = torch.broadcast_shapes(M.batch_shape, self.d.shape[:-1])
        self._shape = torch.Size((*batch, *M.shape[-2:]))

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.M.leaves

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

    def part(self, start: int, stop: int) -> RowScaled:
        return RowScaled(self.M.part(start, stop), _part(self.d, start, stop))

    def magnitude(self) -> Tensor:
        return self.M.magnitude() * self.d.double().abs().amax(-1)

    def exponent(self) -> Tensor:
        return self.M.exponent() + _exponent(self.d, 1)


class ColumnScaled(Operator):
    """M diag(d), d (*batch, n): the transpose of a RowScaled."""

    def __init__(self, M: Operator, d: Tensor) -> None:
        self.M, self.d = M, _lift(d.detach(), len(M.batch_shape), core=1)
        batch = torch.broadcast_shapes(M.batch_shape, self.d.shape[:-1])
        self._shape = torch.Size((*batch, *M.shape[-2:]))

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.M.leaves

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

    def part(self, start: int, stop: int) -> ColumnScaled:
        return ColumnScaled(self.M.part(start, stop), _part(self.d, start, stop))

    def magnitude(self) -> Tensor:
        return self.M.magnitude() * self.d.double().abs().amax(-1)

    def exponent(self) -> Tensor:
        return self.M.exponent() + _exponent(self.d, 1)


def as_operator(M: Tensor | Operator) -> Operator:
    """A tensor as a Dense; an operator as it is."""
    return M if isinstance(M, Operator) else Dense(M)


def row_products(x: Tensor, W: Tensor) -> Tensor:
    """W x for one vector per matrix, (*batch, n) -> (*batch, m), with vectors as rows of one GEMM where W is shared.

    x W^T with x as a row is several times faster than W x with x as a column in torch's batched product on CPU.
    """
    if x.ndim == 1:
        return W.reshape(W.shape[-2:]).mv(x)
    if W.ndim == 2:
        return x @ W.mT
    if W.shape[-3] == 1 and W.ndim == x.ndim + 1:
        return x @ W.squeeze(-3).mT
    return (x[..., None, :] @ W.mT)[..., 0, :]


def _add(left: Operator, right: Operator, sign: float) -> Operator:
    """left + sign right, batches aligned; two LowRank stay one LowRank, so that they stay exact."""
    if not isinstance(right, Operator):
        return NotImplemented
    if left.shape[-2:] != right.shape[-2:]:
        raise ValueError(
            f"a sum needs two (m, n) matrices of one shape; got {tuple(left.shape)} and {tuple(right.shape)}. "
            "GPT-2's Conv1D stores (in, out): use its transpose, .mT."
        )
    ndim = max(len(left.batch_shape), len(right.batch_shape))
    torch.broadcast_shapes(left.batch_shape, right.batch_shape)
    left, right = _lifted(left, ndim), _lifted(right, ndim)
    if sign < 0:
        right = -right
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        return _concatenated(left, right)
    return Sum(left, right)


def _concatenated(left: LowRank, right: LowRank) -> LowRank:
    """[s B, s' B'] [A; A'], in float64 when the scales are not both one."""
    Bs, As = [], []
    batch = torch.broadcast_shapes(left.batch_shape, right.batch_shape)
    for op in (left, right):
        B = op.B.double() * op.scale[..., None, None]
        Bs.append(B.expand(*batch, *B.shape[-2:]))
        As.append(op.A.double().expand(*batch, *op.A.shape[-2:]))
    return LowRank(B=torch.cat(Bs, dim=-1), A=torch.cat(As, dim=-2))


def _lifted(op: Operator, ndim: int) -> Operator:
    """`op` with `ndim` batch dimensions, new ones of size 1 in front (views)."""
    if len(op.batch_shape) == ndim:
        return op
    if isinstance(op, Dense):
        return Dense(_lift(op.W, ndim))
    if isinstance(op, LowRank):
        scale = op.scale.reshape((1,) * (ndim - op.scale.ndim) + tuple(op.scale.shape))
        return LowRank(B=_lift(op.B, ndim), A=_lift(op.A, ndim), scale=scale)
    if isinstance(op, Sum):
        return Sum(_lifted(op.left, ndim), _lifted(op.right, ndim))
    assert isinstance(op, RowScaled | ColumnScaled)
    return type(op)(_lifted(op.M, ndim), op.d)


def _lift(tensor: Tensor, ndim: int, core: int = 2) -> Tensor:
    return tensor.reshape((1,) * (ndim - (tensor.ndim - core)) + tuple(tensor.shape))


def _exponent(tensor: Tensor, core: int) -> Tensor:
    """Binary exponent above the largest entry, over the last `core` dimensions."""
    size = tensor.double().abs()
    top = size.amax(tuple(range(-core, 0))) if core else size
    return torch.frexp(torch.where(top > 0, top, 1.0))[1]


def _part(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Slice of the first dimension, unless it is broadcast."""
    return tensor if tensor.shape[0] == 1 else tensor[start:stop]
