"""LyCORIS's updates as low-rank products: the Hadamard product of two of them, or a Kronecker
product.

Letters: m rows (out), n columns (in), r rank. Both are made into one B A where that is smaller than
dW: (B_1 A_1) o (B_2 A_2) has rows of factors that are products of one row each, rank r^2 at most;
and C x (B A) = (C x B) (I x A). Formulas of https://arxiv.org/abs/2309.14859.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor | None]  # B (m, r) and A (r, n); or dW itself and None


def loha(parts: Mapping[str, Tensor]) -> tuple[Factors, int]:
    """(B_1 A_1) o (B_2 A_2), and the rank by which alpha is divided. ``ValueError`` where shapes
    don't fit."""
    a1, b1, a2, b2 = (
        parts[name].double() for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    )
    if "hada_t1" in parts:
        whole = _tucker(parts["hada_t1"], a1, b1) * _tucker(parts["hada_t2"], a2, b2)
        return (whole.flatten(1), None), b1.shape[0]
    r = a1.shape[1] * a2.shape[1]
    m, n = a1.shape[0], b1.shape[1]
    if r * (m + n) > m * n:
        return ((a1 @ b1) * (a2 @ b2), None), b1.shape[0]
    B = (a1[:, :, None] * a2[:, None, :]).flatten(1)  # (m, r^2)
    A = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)  # (r^2, n)
    return (B, A), b1.shape[0]


def lokr(parts: Mapping[str, Tensor]) -> tuple[Factors, int | None]:
    """W_1 x W_2 and the rank by which alpha is divided: None where both are stored whole, for s is
    then 1."""
    wide = {name: part.double() for name, part in parts.items()}
    r = next((wide[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in wide), None)
    first = wide["lokr_w1"] if "lokr_w1" in wide else wide["lokr_w1_a"] @ wide["lokr_w1_b"]
    if "lokr_t2" in wide:
        second = _tucker(wide["lokr_t2"], wide["lokr_w2_a"], wide["lokr_w2_b"])
        return (_kron(first, second), None), r
    if "lokr_w2" in wide:
        return (_kron(first, wide["lokr_w2"]), None), r
    B2, A2 = wide["lokr_w2_a"], wide["lokr_w2_b"].flatten(1)
    m, n = first.shape[0] * B2.shape[0], first.shape[1] * A2.shape[1]
    rank = first.shape[1] * B2.shape[1]
    if rank * (m + n) > m * n:
        return (torch.kron(first, B2 @ A2), None), r
    eye = torch.eye(first.shape[1], dtype=torch.float64)
    return (torch.kron(first, B2), torch.kron(eye, A2)), r


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(out, in, k ...) from a core (r, r, k ...), a (r, out) and b (r, in)."""
    return torch.einsum("ij...,jq,ip->pq...", core.double(), b, a)


def _kron(first: Tensor, second: Tensor) -> Tensor:
    """(out, in k ...) of W_1 (a, b) and W_2 (c, d, k ...)."""
    whole = torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())
    return whole.reshape(whole.shape[0], prod(whole.shape[1:]))
