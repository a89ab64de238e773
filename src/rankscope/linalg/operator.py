"""Operators: matrices that are multiplied and never formed.

Letters: m rows (out), n columns (in), r rank, c columns of a multiplied block, *batch leading
dimensions (broadcast against each other as in torch; a frozen W of shape (S, 1, m, n) plus updates
of shape (S, K, m, n) is stored once).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Operator(ABC):
    """A batch of (m, n) matrices, defined by their products with vectors."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(*batch, m, n)."""

    @property
    @abstractmethod
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that the operator holds, without scales."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """The number of products that are summed in an entry of M."""

    @property
    @abstractmethod
    def mT(self) -> Operator:
        """The transpose; shares memory."""

    @abstractmethod
    def matvec(self, x: Tensor) -> Tensor:
        """M x for one vector per matrix: (*batch, n) -> (*batch, m), in x's dtype, which must be
        the operator's."""

    @abstractmethod
    def matmul(self, X: Tensor) -> Tensor:
        """M X: (*batch, n, c) -> (*batch, m, c), in the wider of both dtypes, at least float32."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Operator:
        """The operator of rows start .. stop - 1; shares memory."""

    @abstractmethod
    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        """Writes (or adds) rows start .. start + h - 1 into out, (*batch, h, n), computed in out's
        dtype."""

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> Operator:
        """The same operator in `dtype`; no copy where a leaf already has it."""

    @abstractmethod
    def scaled(self, factor: Tensor) -> Operator:
        """factor * M, factor (*batch) float64."""

    def balanced(self) -> Operator:
        """The same matrix from factors near 1 in size, where it has factors; else itself."""
        return self

    @abstractmethod
    def used_rank(self) -> Tensor:
        """(*batch) int: the number of leading factor columns that are not zero; the others are
        padding. 0 where there are no factors."""

    @abstractmethod
    def select(self, index: Tensor, batch: torch.Size, r: int | None = None) -> Operator:
        """The matrices at positions `index` (N,) int of the flattened `batch`, with batch
        shape (N,), factors cut to their leading `r` columns. Shares memory where the
        positions are neighbours."""

    @abstractmethod
    def lifted(self, ndim: int) -> Operator:
        """With `ndim` batch dimensions, new ones of size 1 in front; shares memory."""

    @abstractmethod
    def magnitude(self) -> Tensor:
        """Sum of the Frobenius norms of the products whose sum is M, (*batch) float64:
        docs/math.md, (5)."""

    @abstractmethod
    def exponent(self) -> Tensor:
        """(*batch) int: every entry of every term of M is below 2^exponent in size."""

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
        """The sum; of two LowRank a LowRank, so that it stays exact."""
        if not isinstance(other, Operator):
            return NotImplemented
        if self.shape[-2:] != other.shape[-2:]:
            raise ValueError(
                f"a sum needs two matrices of one shape (m, n); got {tuple(self.shape)} and "
                f"{tuple(other.shape)}. GPT-2's Conv1D stores (in, out): use its transpose, .mT."
            )
        ndim = max(len(self.batch_shape), len(other.batch_shape))
        return self.lifted(ndim)._plus(other.lifted(ndim))

    def _plus(self, other: Operator) -> Operator:
        """The sum with an operator of the same shape and number of batch dimensions."""
        return Sum(self, other)

    def __sub__(self, other: Operator) -> Operator:
        return self + (-other)

    def __neg__(self) -> Operator:
        return self.scaled(torch.tensor(-1.0, dtype=torch.float64, device="cpu"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}{tuple(self.shape)}"


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

    def used_rank(self) -> Tensor:
        return torch.maximum(self.left.used_rank(), self.right.used_rank())

    def select(self, index: Tensor, batch: torch.Size, r: int | None = None) -> Sum:
        return Sum(self.left.select(index, batch, r), self.right.select(index, batch, r))

    def lifted(self, ndim: int) -> Sum:
        return Sum(self.left.lifted(ndim), self.right.lifted(ndim))

    def magnitude(self) -> Tensor:
        return self.left.magnitude() + self.right.magnitude()

    def exponent(self) -> Tensor:
        return torch.maximum(self.left.exponent(), self.right.exponent()) + 1


def check_has_values(*tensors: Tensor) -> None:
    """``ValueError`` for a tensor on the meta device, and for a sparse one."""
    for tensor in tensors:
        if tensor.is_meta:
            raise ValueError("expected a tensor with values; found one on the meta device")
        if tensor.layout != torch.strided:
            raise ValueError(f"expected a dense tensor, .to_dense(); found {tensor.layout}")


def row_products(x: Tensor, W: Tensor) -> Tensor:
    """W x for one vector per matrix, (*batch, n) -> (*batch, m), with vectors as rows of one GEMM
    where W is shared.

    x W^T with x as a row is several times faster than W x with x as a column in torch's batched
    product on CPU.
    """
    if x.ndim == 1:
        return W.reshape(W.shape[-2:]).mv(x)
    if W.ndim == 2:
        return x @ W.mT
    if W.shape[-3] == 1 and W.ndim == x.ndim + 1:
        return x @ W.squeeze(-3).mT
    return (x[..., None, :] @ W.mT)[..., 0, :]


def lift(tensor: Tensor, ndim: int, core: int = 2) -> Tensor:
    missing = ndim - (tensor.ndim - core)
    return tensor.reshape((1,) * missing + tuple(tensor.shape)) if missing else tensor


def top(tensor: Tensor, *dim: int) -> Tensor:
    """The largest absolute value over `dim`, NaN if there is one; allocates no absolute values."""
    return torch.maximum(tensor.amax(dim), -tensor.amin(dim))


def norm(tensor: Tensor) -> Tensor:
    """||tensor||_F over the last two dimensions, (*batch) float64, to a few units of the tensor's
    dtype. Squares that leave the dtype's range are avoided by a power of two."""
    wide = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
    found = torch.linalg.vector_norm(tensor, dim=(-2, -1), dtype=wide).double()
    least, most = (1e-140, 1e140) if wide == torch.float64 else (1e-12, 1e15)
    if bool(((found > least) & (found < most)).all()):
        return found
    size = torch.exp2(exponent(tensor, 2).double())
    return torch.linalg.vector_norm(tensor.double() / size[..., None, None], dim=(-2, -1)) * size


def exponent(tensor: Tensor, core: int) -> Tensor:
    """Binary exponent at or above the largest entry, over the last `core` dimensions."""
    size = (top(tensor, *range(-core, 0)) if core else tensor.abs()).double()
    return torch.frexp(torch.where(size > 0, size, 1.0))[1].clamp(max=1023)  # 2^1024 is infinite


def select(tensor: Tensor, index: Tensor, batch: torch.Size, core: int = 2) -> Tensor:
    """The entries at positions ``index`` (N,) of the flattened ``batch``: (N, *core), or (1, *core)
    where all share one."""
    lead, own = tensor.shape[: tensor.ndim - core], tensor.shape[tensor.ndim - core :]
    if all(size == 1 for size in lead):
        return tensor.reshape(1, *own)
    # By hand: the first call of torch.unravel_index imports SymPy, which takes 0.4 s.
    places = tuple(
        index // prod(batch[i + 1 :]) % batch[i] if size > 1 else torch.zeros_like(index)
        for i, size in enumerate(lead)
    )
    strides = [prod(lead[i + 1 :]) for i in range(len(lead))]
    flat = sum(p * stride for p, stride in zip(places, strides, strict=True))
    assert isinstance(flat, Tensor)
    if len(lead) > 1 and not tensor.is_contiguous():
        return tensor[places]
    tensor, first, N = tensor.reshape(-1, *own), int(flat[0]), len(flat)
    if bool((flat == first).all()):
        return tensor[first : first + 1]
    if bool((flat == torch.arange(first, first + N)).all()):
        return tensor[first : first + N]
    return tensor[flat.to(tensor.device)]


def broadcast(*shapes: tuple[int, ...]) -> torch.Size:
    """As ``torch.broadcast_shapes``, whose first call imports SymPy (1 s).

    ``RuntimeError`` where the shapes do not fit.
    """
    if all(shape == shapes[0] for shape in shapes):
        return torch.Size(shapes[0])
    try:
        return torch.Size(np.broadcast_shapes(*shapes))
    except ValueError as error:
        raise RuntimeError(str(error)) from None
