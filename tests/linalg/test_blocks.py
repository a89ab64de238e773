"""Passes over blocks of rows: all rows once, in the memory that was allowed."""

from __future__ import annotations

import pytest
import torch

import rankscope.linalg as la
from rankscope.linalg.frobenius import row_blocks


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(
    ("entries", "height"), [(1, 1), (40, 1), (41 * 7, 7), (10**6, 50)], ids=["least", "row", "7", "all"]
)
def test_blocks_are_as_high_as_their_entries_allow(batch: tuple[int, ...], entries: int, height: int) -> None:
    M = torch.randn(*batch, 50, 41, generator=torch.Generator().manual_seed(0))
    allowed = entries * max(1, len(M) if batch else 1)
    seen, heights = torch.full(M.shape, torch.nan, dtype=torch.float64), []
    for start, block in row_blocks(la.Dense(M), allowed):
        seen[..., start : start + block.shape[-2], :] = block
        heights.append(block.shape[-2])
    assert torch.equal(seen, M.double())
    assert heights[:-1] == [height] * (len(heights) - 1)
    assert sum(heights) == 50
