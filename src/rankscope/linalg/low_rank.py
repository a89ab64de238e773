"""The operator of a product of two thin factors, which is what LoRA learns."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from rankscope.linalg.operator import (
    FLOATS,
    Operator,
    broadcast,
    check_has_values,
    exponent,
    lift,
    norm,
    row_products,
    select,
    top,
)

_ORDINARY = 20  # largest binary exponent of a factor that is left as it is


class LowRank(Operator):
    """scale B A with B (*batch, m, r), A (*batch, r, n); scale a number or a tensor (*batch).

    Keyword-only, since the factors of a square layer could be swapped unseen. A PEFT
    layer holds them as layer.lora_B[name].weight and layer.lora_A[name].weight; its
    scale is layer.scaling[name].
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
                f"{tuple(B.shape)} {B.dtype} and A {tuple(A.shape)} {A.dtype}. A PEFT layer "
                "holds them as "
                "layer.lora_B[name].weight and layer.lora_A[name].weight."
            )
        if 0 in B.shape or 0 in A.shape:
            raise ValueError(
                f"LowRank needs r >= 1 and m, n >= 1; got B {tuple(B.shape)} and A "
                f"{tuple(A.shape)}."
            )
        check_has_values(B, A)
        scale = torch.as_tensor(scale, dtype=torch.float64, device=B.device).detach()
        batch = broadcast(B.shape[:-2], A.shape[:-2], scale.shape)
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
    def terms(self) -> int:
        return self.A.shape[-2]

    @property
    def mT(self) -> LowRank:
        return LowRank(B=self.A.mT, A=self.B.mT, scale=self.scale)

    def matvec(self, x: Tensor) -> Tensor:
        scale = self.scale[..., None].to(x.dtype)
        return row_products(row_products(x, self.A) * scale, self.B)

    def matmul(self, X: Tensor) -> Tensor:
        dtype = torch.promote_types(self.dtype, X.dtype)
        return self.B.to(dtype) @ (
            self.A.to(dtype) @ X.to(dtype) * self.scale[..., None, None].to(dtype)
        )

    def rows(self, start: int, stop: int) -> LowRank:
        return LowRank(B=self.B[..., start:stop, :], A=self.A, scale=self.scale)

    def rows_into(self, out: Tensor, start: int, *, add: bool = False) -> None:
        B = (
            self.B[..., start : start + out.shape[-2], :].double() * self.scale[..., None, None]
        ).to(out.dtype)
        A = self._wide_A if out.dtype == torch.float64 else self.A.to(out.dtype)
        if out.ndim == 3:
            N = len(out)
            out.baddbmm_(B.expand(N, -1, -1), A.expand(N, -1, -1), beta=int(add))
        elif add:
            out += B @ A
        else:
            out.copy_(B @ A)

    @cached_property
    def _wide_A(self) -> Tensor:
        """A in float64, once for all blocks of rows."""
        return self.A.double()

    def cast(self, dtype: torch.dtype) -> LowRank:
        B = (self.B.double() * self.scale[..., None, None]).to(dtype)
        return LowRank(B=B, A=self.A.to(dtype))

    def scaled(self, factor: Tensor) -> LowRank:
        return LowRank(B=self.B, A=self.A, scale=self.scale * factor.to(self.scale.device))

    def balanced(self) -> LowRank:
        """The same product from factors near 1 in size, by powers of two, so that no entry of
        a factor in float32, with the scale in it, leaves the range; as it is where the
        factors are of ordinary size."""
        sizes = [exponent(leaf, 2) for leaf in self.leaves]
        if all(bool((size.abs() <= _ORDINARY).all()) for size in sizes):
            return self
        powers = [torch.exp2(size.double()) for size in sizes]
        B, A = (
            (leaf.double() / power[..., None, None]).to(self.dtype)
            for leaf, power in zip(self.leaves, powers, strict=True)
        )
        return LowRank(B=B, A=A, scale=self.scale * powers[0] * powers[1])

    def used_rank(self) -> Tensor:
        r = self.A.shape[-2]
        if r == 1:
            return torch.ones(self.batch_shape, dtype=torch.long, device=self.device)
        ends = ((self.B[..., -1] != 0).any(-1), (self.A[..., -1, :] != 0).any(-1))
        if all(bool(end.all()) for end in ends):  # seen without a look at all entries
            return torch.full(self.batch_shape, r, device=self.device)
        used = (top(self.B, -2) != 0) & (top(self.A, -1) != 0)  # (*batch, r); NaN counts
        last = (used * torch.arange(1, r + 1, device=self.device)).amax(-1)
        return last.clamp(min=1).expand(self.batch_shape)

    def select(self, index: Tensor, batch: torch.Size, r: int | None = None) -> LowRank:
        B, A = select(self.B[..., :r], index, batch), select(self.A[..., :r, :], index, batch)
        return LowRank(B=B, A=A, scale=select(self.scale, index, batch, core=0))

    def lifted(self, ndim: int) -> LowRank:
        return LowRank(
            B=lift(self.B, ndim), A=lift(self.A, ndim), scale=lift(self.scale, ndim, core=0)
        )

    def magnitude(self) -> Tensor:
        norms = [1.01 * norm(leaf) for leaf in self.leaves]
        return (norms[0] * norms[1] * self.scale.abs()).expand(self.batch_shape)

    def exponent(self) -> Tensor:
        room = self.A.shape[-2].bit_length()
        return exponent(self.B, 2) + exponent(self.A, 2) + exponent(self.scale, 0) + room

    def _plus(self, other: Operator) -> Operator:
        """[s B, s' B'] [A; A'] with another LowRank; scales folded in, in float64."""
        if not isinstance(other, LowRank):
            return super()._plus(other)
        Bs, As = [], []
        batch = broadcast(self.batch_shape, other.batch_shape)
        for op in (self, other):
            B = op.B.double() * op.scale[..., None, None]
            Bs.append(B.expand(*batch, *B.shape[-2:]))
            As.append(op.A.double().expand(*batch, *op.A.shape[-2:]))
        return LowRank(B=torch.cat(Bs, dim=-1), A=torch.cat(As, dim=-2))
