"""The operator s B A of two factors; its exact norms, singular values and vectors in float64, from
the r x r core of two QR factorisations: docs/math.md, (8).

Letters: m rows, n columns, r rank, p = min(m, r), q = min(n, r), *batch leading dimensions."""

from __future__ import annotations

from dataclasses import dataclass
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
from rankscope.linalg.rounding import sized

_ORDINARY = 20  # factors with entries up to 2^20, and from 2^-20, are not rescaled


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
        if all(bool(end.all()) for end in ends):  # no need to look at all entries
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


@dataclass(frozen=True)
class Spectrum:
    """Singular values `sigma` (*batch, min(m, n, r)), descending; `frobenius` (*batch);
    `magnitude` (*batch) = |s| ||B||_F ||A||_F; float64, all divided by `size` (*batch). NaN where
    the factors are not finite."""

    sigma: Tensor
    frobenius: Tensor
    magnitude: Tensor
    size: Tensor


def spectrum(op: LowRank) -> Spectrum:
    """Norms and singular values from one core, each to a small multiple of u times the
    magnitude."""
    C, size, magnitude = _core(op)
    frobenius = torch.linalg.matrix_norm(C)
    sigma = torch.linalg.svdvals(torch.nan_to_num(C))
    batch = op.batch_shape
    sigma = torch.where(frobenius.isfinite()[..., None], sigma, torch.nan).expand(
        *batch, sigma.shape[-1]
    )
    return Spectrum(sigma, *(x.expand(batch) for x in (frobenius, magnitude, size)))


def frobenius_norm(op: LowRank) -> Tensor:
    """||s B A||_F, (*batch) float64."""
    C, size, _ = _core(op)
    return sized(torch.linalg.matrix_norm(C), size).expand(op.batch_shape)


def singular_vectors(op: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """U (*batch, m, p'), sigma (*batch, p'), V (*batch, n, p') of s B A, with p' = min(m, n, r)."""
    left, sigma, right, _ = decomposition(op)
    count = sigma.shape[-1]
    return left.first(count), sigma, right.first(count)


@dataclass(frozen=True)
class Directions:
    """Orthonormal columns Q P, formed on request: Q (*batch, m, p) as Householder
    vectors ``a`` and ``tau`` (LAPACK's geqrf), P (*batch, p, p')."""

    a: Tensor
    tau: Tensor
    P: Tensor

    def first(self, k: int) -> Tensor:
        """The leading k, (*batch, m, k): 4 m p k operations, a third of what Q and Q P take for
        the few that a cut keeps."""
        P = self.P[..., :k]
        padded = torch.zeros(*P.shape[:-2], self.a.shape[-2], k, dtype=P.dtype, device=P.device)
        padded[..., : P.shape[-2], :] = P
        return torch.ormqr(self.a, self.tau, padded)

    def select(self, index: list[int]) -> Directions:
        """The directions at ``index`` of a flat batch."""
        return Directions(self.a[index], self.tau[index], self.P[index])


def decomposition(op: LowRank) -> tuple[Directions, Tensor, Directions, Tensor]:
    """s B A = U diag(sigma) V^T as U, sigma (*batch, p'), V, and |s| ||B||_F ||A||_F (*batch), by
    which their rounding is bounded."""
    B, size_B = _widened(op.B)
    A, size_A = _widened(op.A)
    left, right = (torch.geqrf(X) for X in (B, A.mT))
    R_B, R_A = (a[..., : tau.shape[-1], :].triu() for a, tau in (left, right))
    P, sigma, Qh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    size = size_B * size_A * op.scale
    P = P * size.sign()[..., None, None]
    magnitude = torch.linalg.matrix_norm(R_B) * torch.linalg.matrix_norm(R_A) * size.abs()
    batch = op.batch_shape
    U, V = (
        Directions(
            a[..., : tau.shape[-1]].expand(*batch, -1, -1), tau.expand(*batch, -1),
            X.expand(*batch, -1, -1),
        )
        for (a, tau), X in ((left, P), (right, Qh.mT))
    )  # fmt: skip
    return U, (sigma * size.abs()[..., None]).expand(*batch, -1), V, magnitude.expand(batch)


def _core(op: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """(C, size, magnitude): the singular values of s B A are `size` times those of C, (*batch, p,
    q), whose entries are near 1; so is `magnitude`, |s| ||B||_F ||A||_F / size."""
    R_B, size_B, own_B = _triangle(op.B)  # (*batch, p, r)
    R_A, size_A, own_A = _triangle(op.A.mT)  # (*batch, q, r)
    share, power = torch.frexp(op.scale.abs())
    magnitude = torch.linalg.matrix_norm(R_B) * torch.linalg.matrix_norm(R_A) * share
    return (
        R_B @ R_A.mT * share[..., None, None],
        # in this order: a norm of B or A alone may lie outside float64's range
        (size_B * size_A) * (own_B * own_A) * torch.exp2(power.double()),
        magnitude,
    )


def _triangle(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R of X = Q R divided by two powers of two, with entries near 1, and these. A wide X is its
    own R.

    ``geqrf`` is what ``torch.linalg.qr`` calls, which then copies all of X for its triangle.
    """
    wide, size = _widened(X)
    rows, r = X.shape[-2:]
    R, own = _balanced(torch.geqrf(wide).a[..., :r, :].triu() if rows > r else wide)
    return R, size, own


def _widened(X: Tensor) -> tuple[Tensor, Tensor]:
    """X in float64, divided by a power of two where its own squares could overflow, and that
    power. Those of narrower dtypes cannot."""
    if X.dtype == torch.float64:
        return _balanced(X)
    return X.double(), torch.ones((), dtype=torch.float64, device=X.device)


def _balanced(X: Tensor) -> tuple[Tensor, Tensor]:
    """X divided by a power of two near its largest entry, and that power, both float64: exact,
    and no square can overflow."""
    size = torch.exp2(exponent(X, 2).double())
    return X.double() / size[..., None, None], size
