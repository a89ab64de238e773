"""A stored matrix as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.operator import (
    FLOATS,
    Operator,
    check_has_values,
    exponent,
    lift,
    norm,
    row_products,
    select,
)


def _advice(W: object) -> str:
    """What makes a matrix of it."""
    if not isinstance(W, Tensor):
        return ": torch.as_tensor makes one of an array" if hasattr(W, "__array__") else ""
    if W.ndim < 2 or W.dtype.is_complex:
        return ""
    if W.is_quantized:
        return ": give its .dequantize()"
    return ": give its values, such as .double(), times their scales if it has any"


class Dense(Operator):
    """A stored matrix W (*batch, m, n), of any floating dtype and any strides."""

    def __init__(self, W: Tensor) -> None:
        if not isinstance(W, Tensor) or W.ndim < 2 or W.dtype not in FLOATS:
            found = f"{W.dtype} {tuple(W.shape)}" if isinstance(W, Tensor) else type(W).__name__
            raise ValueError(
                f"Dense needs a floating tensor of shape (*batch, m, n), of 16 to 64 bits; got "
                f"{found}{_advice(W)}."
            )
        check_has_values(W)
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
    def terms(self) -> int:
        return 1

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
        factor = factor.to(self.W.device)[..., None, None]
        info = torch.finfo(torch.float32)
        if bool(((factor.abs() > info.tiny) & (factor.abs() < info.max)).all()):
            wide = self.W.to(self.dtype)  # a power of two is exact in it
            if bool((torch.frexp(factor)[0].abs() == 0.5).all()):
                return Dense(wide * factor.to(self.dtype))
        return Dense((self.W.double() * factor).to(self.dtype))

    def used_rank(self) -> Tensor:
        return torch.zeros(self.batch_shape, dtype=torch.long, device=self.device)

    def select(self, index: Tensor, batch: torch.Size, r: int | None = None) -> Dense:
        return Dense(select(self.W, index, batch))

    def lifted(self, ndim: int) -> Dense:
        return Dense(lift(self.W, ndim))

    def magnitude(self) -> Tensor:
        return 1.01 * norm(self.W)

    def exponent(self) -> Tensor:
        return exponent(self.W, 2)


def as_operator(M: Tensor | Operator) -> Operator:
    """A tensor as a Dense; an operator as it is."""
    return M if isinstance(M, Operator) else Dense(M)
