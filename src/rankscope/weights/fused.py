"""LoRA on one weight that holds several projections, such as q, k and v: one B A per projection.

Letters: m rows (out), n columns (in), g adapted projections of rank r. A (g r, n) and B (sum of
their rows, r) hold the projections one below the other, so dW has blocks of rows s B_i A_i, and
zeros where a projection is not adapted. As one product its factor B is block-diagonal: (m, g r).

loralib's ``MergedLinear``, PEFT up to 0.2, AdapterHub and LitGPT store it so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    """``len(enabled)`` projections of ``size`` rows, one below the other."""
    rows = tuple(torch.arange(i * size, (i + 1) * size) for i, used in enumerate(enabled) if used)
    return Fusion(rows, len(enabled) * size)


def blocks(sizes: Sequence[int], enabled: Sequence[bool]) -> Fusion:
    """Projections of unequal size, one below the other."""
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
    """B (sum of sizes, r) as (m, g r), so that B A is the layer's whole update."""
    r = B.shape[1]
    whole = B.new_zeros(fusion.total, len(fusion.rows) * r)
    for i, (rows, part) in enumerate(zip(fusion.rows, B.split(fusion.sizes), strict=True)):
        whole[rows, i * r : (i + 1) * r] = part
    return whole
