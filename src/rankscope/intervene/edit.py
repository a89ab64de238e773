"""Edits of one layer's update dW through its singular value decomposition. docs/math.md, section 8.

An edit keeps the update low rank: it changes the singular values or vectors of the r x r
core, or takes a few singular directions of W + dW away. So K edits of one update are K
adapters, and form one pack.

Letters: m rows, n columns, r rank of the update, p = min(m, n, r), k leading directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg import Dense, LowRank, singular_subspaces, spectral_norm

_STEPS = 100  # of the bisection for a level: more than the 53 bits of float64, whatever the start


def edit(
    update: LowRank | Dense,
    *,
    base: Tensor | None = None,
    scale: float | None = None,
    cap: float | None = None,
    restore: bool = False,
    top: int | None = None,
    without_top: int | None = None,
    flat: int | None = None,
    random: torch.Generator | None = None,
) -> LowRank:
    """The update dW (m, n), edited in one way. Float64; a Dense update goes through its full SVD.

    Args:
        update: dW; a LowRank with its scale, or a Dense W_FT - W.
        base: W (m, n), which ``cap`` and ``restore`` need.
        scale: t: t dW.
        cap: c: singular values of dW above c sigma_1(W) are set to that level.
        restore: the singular values of W + dW above a level tau are set to tau, which is chosen so
            that sr(W + dW) = sr(W). The result has rank r + k, k the number of values capped. dW
            itself where sr(W + dW) is not below sr(W): capping can only raise it.
        top: k: the k leading singular directions of dW alone.
        without_top: k: dW without them.
        flat: k: the k leading directions, with equal singular values and dW's Frobenius norm.
        random: draws singular vectors anew (Haar), with dW's singular values.

    Raises:
        ValueError: not exactly one edit; k out of 1 .. p; no base where
            one is needed; a negative c.
    """
    asked = {
        "scale": scale is not None,
        "cap": cap is not None,
        "restore": restore,
        "top": top is not None,
        "without_top": without_top is not None,
        "flat": flat is not None,
        "random": random is not None,
    }
    if sum(asked.values()) != 1:
        named = ", ".join(name for name, given in asked.items() if given) or "none"
        raise ValueError(f"edit: expected exactly one of {', '.join(asked)}; found {named}")
    if (cap is not None or restore) and base is None:
        raise ValueError(
            f"edit: {'cap' if restore is False else 'restore'} needs base=, the weight W of "
            "this layer"
        )
    if scale is not None:
        return _scaled(update, scale)
    if restore:
        assert base is not None
        return _restored(update, base)
    U, sigma, V = _svd(update)
    p = len(sigma)
    for name, k in (("top", top), ("without_top", without_top), ("flat", flat)):
        if k is not None and not 1 <= k <= p:
            raise ValueError(
                f"edit: {name} must lie in 1 .. {p}, this update's directions; found {k}"
            )
    if random is not None:
        return _product(_haar(len(U), p, random), sigma, _haar(len(V), p, random))
    if cap is not None:
        assert base is not None
        return _product(U, sigma.clamp(max=_level(cap, base)), V)
    if flat is not None:
        equal = torch.linalg.vector_norm(sigma) / flat**0.5
        return _product(U[:, :flat], equal.expand(flat), V[:, :flat])
    if top is not None:
        return _product(U[:, :top], sigma[:top], V[:, :top])
    assert without_top is not None
    kept = sigma.clone()
    kept[:without_top] = 0
    return _product(U, kept, V)


def _scaled(update: LowRank | Dense, factor: float) -> LowRank:
    if isinstance(update, LowRank):
        return LowRank(B=update.B, A=update.A, scale=update.scale * factor)
    U, sigma, V = _svd(update)
    return LowRank(B=U * sigma, A=V.mT, scale=factor)


def _level(cap: float, base: Tensor) -> float:
    if cap < 0:
        raise ValueError(f"edit: cap must be at least 0, a share of sigma_1(W); found {cap}")
    return cap * float(spectral_norm(base.double(), rtol=1e-10).value)


def _restored(update: LowRank | Dense, base: Tensor) -> LowRank:
    """Caps the leading singular values of W + dW at the level where the stable rank is W's
    again."""
    W = base.double()
    sigma_W = torch.linalg.svdvals(W)
    U, sigma, Vh = torch.linalg.svd(W + update.to_dense().double(), full_matrices=False)
    level = _level_of(sigma, target=float((sigma_W / sigma_W[0]).square().sum()))
    k = int((sigma > level).sum())
    B, A = _factors(update)
    if k == 0:
        return LowRank(B=B, A=A)
    return LowRank(
        B=torch.cat([B, -U[:, :k] * (sigma[:k] - level)], dim=1), A=torch.cat([A, Vh[:k]], dim=0)
    )


def _level_of(sigma: Tensor, *, target: float) -> float:
    """The largest tau with sum min(sigma, tau)^2 / tau^2 >= target; sigma_1 where that holds
    already.

    The quotient falls as tau grows, so bisection finds it.
    """

    def capped(tau: float) -> float:
        return float((sigma / tau).clamp(max=1).square().sum())

    low, high = 0.0, float(sigma[0])
    if capped(high) >= target:
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if capped(middle) >= target else (low, middle)
    return low or high


def _svd(update: LowRank | Dense) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, p), sigma (p,), V (n, p) of the update."""
    p = min(update.shape[-2:])
    return singular_subspaces(
        update, min(p, update.A.shape[-2]) if isinstance(update, LowRank) else p
    )


def _factors(update: LowRank | Dense) -> tuple[Tensor, Tensor]:
    """B (m, r) with the scale in it, and A (r, n), float64."""
    if isinstance(update, LowRank):
        return update.B.double() * update.scale, update.A.double()
    U, sigma, V = _svd(update)
    return U * sigma, V.mT


def _product(U: Tensor, sigma: Tensor, V: Tensor) -> LowRank:
    """U diag(sigma) V^T; both factors carry the square root of sigma, as PEFT's own conversions
    do."""
    root = sigma.sqrt()
    return LowRank(B=U * root, A=(V * root).mT)


def _haar(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns, uniformly distributed (Mezzadri 2007): QR of a Gaussian, signs of R
    undone."""
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(gaussian)
    return Q * R.diagonal().sign()
