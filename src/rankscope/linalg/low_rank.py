"""The operator of a product of two thin factors, which is what LoRA learns."""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.operator import FLOATS, Operator, exponent, lift, row_products, take


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
                f"LowRank needs floating B (*batch, m, r) and A (*batch, r, n) with one r; got B "
                f"{tuple(B.shape)} {B.dtype} and A {tuple(A.shape)} {A.dtype}. A PEFT layer holds them as "
                "layer.lora_B[name].weight and layer.lora_A[name].weight."
            )
        if 0 in B.shape or 0 in A.shape:
            raise ValueError(
                f"LowRank needs r >= 1 and m, n >= 1; got B {tuple(B.shape)} and A {tuple(A.shape)}."
            )
        scale = torch.as_tensor(scale, dtype=torch.float64, device=B.device).detach()
        batch = torch.broadcast_shapes(B.shape[:-2], A.shape[:-2], scale.shape)
        self.B, self.A = lift(B.detach(), len(batch)), lift(A.detach(), len(batch))
        self.scale = lift(scale, len(batch), core=0)
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

    def take(self, index: slice | Tensor) -> LowRank:
        return LowRank(B=take(self.B, index), A=take(self.A, index), scale=take(self.scale, index))

    def lifted(self, ndim: int) -> LowRank:
        return LowRank(B=lift(self.B, ndim), A=lift(self.A, ndim), scale=lift(self.scale, ndim, core=0))

    def magnitude(self) -> Tensor:
        norms = [torch.linalg.matrix_norm(leaf.double()) for leaf in self.leaves]
        return (norms[0] * norms[1] * self.scale.abs()).expand(self.batch_shape)

    def exponent(self) -> Tensor:
        room = self.A.shape[-2].bit_length()
        return exponent(self.B, 2) + exponent(self.A, 2) + exponent(self.scale, 0) + room
