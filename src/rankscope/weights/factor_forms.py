"""Updates that are not stored as one B and one A, rewritten as one product B A.

Letters: m rows (out), n columns (in), r rank, g adapted projections, o the entrywise product, x the
Kronecker product.

Fused projections: one weight that holds several, such as q, k and v, with one B A each (loralib's
``MergedLinear``, PEFT up to 0.2, AdapterHub, LitGPT). A (g r, n) and B (sum of their rows, r) hold
the projections one below the other, so dW has blocks of rows s B_i A_i, and zeros where a
projection is not adapted. As one product its factor B is block-diagonal: (m, g r).

LyCORIS (https://arxiv.org/abs/2309.14859): LoHa is (B_1 A_1) o (B_2 A_2), whose rows of factors are
products of one row each, of rank r^2 at most; LoKr is C x (B A) = (C x B) (I x A). Both become one
B A where that is smaller than dW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from rankscope.weights.limits import FUSED_ROWS

Factors = tuple[Tensor, Tensor | None]  # B (m, r) and A (r, n); or dW itself and None


@dataclass(frozen=True)
class Fusion:
    """Which rows of the layer belong to each adapted projection, and how many rows the layer
    has."""

    rows: tuple[Tensor, ...]
    total: int

    @property
    def sizes(self) -> list[int]:
        """How many rows of B each adapted projection has."""
        return [len(rows) for rows in self.rows]


def equal_blocks(enabled: Sequence[bool], size: int) -> Fusion:
    """``len(enabled)`` projections of ``size`` rows, stacked."""
    rows = tuple(torch.arange(i * size, (i + 1) * size) for i, used in enumerate(enabled) if used)
    return Fusion(rows, len(enabled) * size)


def blocks(sizes: Sequence[int], enabled: Sequence[bool]) -> Fusion:
    """Projections of unequal size, stacked."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    spans = zip(ends, sizes, enabled, strict=True)
    return Fusion(
        tuple(torch.arange(end - size, end) for end, size, used in spans if used), ends[-1]
    )


def interleaved(heads: int, groups: int, head_size: int, enabled: Sequence[bool]) -> Fusion:
    """q, k and v by groups of queries: each group has its heads of q, then one of k and one of
    v."""
    queries = heads // groups
    total = (heads + 2 * groups) * head_size
    head = torch.arange(total).div(head_size, rounding_mode="floor") % (queries + 2)
    masks = (head < queries, head == queries, head == queries + 1)
    return Fusion(
        tuple(mask.nonzero()[:, 0] for mask, used in zip(masks, enabled, strict=True) if used),
        total,
    )


def fused_factor(B: Tensor, fusion: Fusion) -> Tensor:
    """B (sum of sizes, r) as (m, g r), so that B A is the layer's whole update.

    ``ValueError`` if the configuration makes the layer larger than any real one.
    """
    if fusion.total > FUSED_ROWS:
        raise ValueError(
            f"expected a fused layer of at most {FUSED_ROWS} rows; its configuration makes "
            f"{fusion.total} of B's {len(B)}."
        )
    r = B.shape[1]
    whole = B.new_zeros(fusion.total, len(fusion.rows) * r)
    for i, (rows, part) in enumerate(zip(fusion.rows, B.split(fusion.sizes), strict=True)):
        whole[rows, i * r : (i + 1) * r] = part
    return whole


def loha(parts: Mapping[str, Tensor]) -> tuple[Factors, int]:
    """(B_1 A_1) o (B_2 A_2), and the rank by which alpha is divided. ``ValueError`` if shapes
    do not match."""
    _check_matrices(parts, "hada_t")
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
    """W_1 x W_2 and the rank by which alpha is divided: None if both are stored in full, since s is
    then 1."""
    _check_matrices(parts, "lokr_t")
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


KERNELS = ("lokr_w2", "lokr_w2_b")  # may have a convolution's axes


def _check_matrices(parts: Mapping[str, Tensor], cores: str) -> None:
    """``ValueError`` if a factor is not a matrix: it would broadcast to another layer's shape."""
    for name, part in parts.items():
        if not name.startswith(("hada_", "lokr_")):
            continue
        wide = name.startswith(cores) or name in KERNELS
        if part.ndim < 2 or 0 in part.shape or (part.ndim > 2 and not wide):
            raise ValueError(f"{name} of shape {tuple(part.shape)}, no matrix")


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(out, in, k ...) from a core (r, r, k ...), a (r, out) and b (r, in)."""
    return torch.einsum("ij...,jq,ip->pq...", core.double(), b, a)


def _kron(first: Tensor, second: Tensor) -> Tensor:
    """(out, in k ...) of W_1 (a, b) and W_2 (c, d, k ...)."""
    whole = torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())
    return whole.reshape(whole.shape[0], prod(whole.shape[1:]))
