"""What operators are measured with: passes over blocks of rows, and plain norms."""

from __future__ import annotations

import pytest
import torch

import rankscope.linalg as la
from rankscope.linalg.frobenius import product, row_blocks
from rankscope.linalg.operator import norm


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(
    ("entries", "height"),
    [(1, 1), (40, 1), (41 * 7, 7), (10**6, 50)],
    ids=["least", "row", "7", "all"],
)
def test_blocks_are_as_high_as_their_entries_allow(
    batch: tuple[int, ...], entries: int, height: int
) -> None:
    M = torch.randn(*batch, 50, 41, generator=torch.Generator().manual_seed(0))
    allowed = entries * max(1, len(M) if batch else 1)
    seen, heights = torch.full(M.shape, torch.nan, dtype=torch.float64), []
    for start, block in row_blocks(la.Dense(M), allowed):
        seen[..., start : start + block.shape[-2], :] = block
        heights.append(block.shape[-2])
    assert torch.equal(seen, M.double())
    assert heights[:-1] == [height] * (len(heights) - 1)
    assert sum(heights) == 50


@pytest.mark.parametrize("batch", [(), (1,), (3,)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_with_factors_is_that_of_their_matrix(
    batch: tuple[int, ...], transposed: bool
) -> None:
    """Scales, factors that a batch shares, and terms of float32 whose product is of float64."""
    source = torch.Generator().manual_seed(0)
    B = torch.randn(*batch, 50, 7, generator=source)
    A = torch.randn(7, 40, generator=source)
    scale = torch.rand(batch, dtype=torch.float64, generator=source) - 2
    op = la.LowRank(B=B, A=A, scale=scale) + la.Dense(torch.randn(50, 40, generator=source))
    x = torch.randn(*batch, 50 if transposed else 40, dtype=torch.float64, generator=source)
    dense = op.to_dense().mT if transposed else op.to_dense()
    expected = (dense @ x[..., None])[..., 0]
    found = product(op, x, transposed=transposed)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "powers"),
    [(torch.float32, [0, -126, -70, 70, 120]), (torch.float64, [0, -1000, -600, 600, 1000])],
)
def test_the_norm_of_a_batch_of_every_scale(dtype: torch.dtype, powers: list[int]) -> None:
    """Ordinary matrices beside those whose squares leave the range: each as if it were alone."""
    M = torch.rand(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    size = torch.tensor([2.0**power for power in powers], dtype=torch.float64)
    stack = (M.to(dtype).double() * size[:, None, None]).to(dtype)  # exact: no entry is denormal
    expected = torch.linalg.matrix_norm(M.to(dtype).double()) * size
    torch.testing.assert_close(norm(stack), expected, rtol=1e-6, atol=0)
    for one, alone in zip(norm(stack), stack, strict=True):
        assert one == pytest.approx(float(norm(alone)), rel=1e-6)


def test_one_matrix_that_is_not_finite_is_nan_among_the_singular_values_of_a_batch() -> None:
    M = torch.eye(4, 3).repeat(2, 5, 1, 1)
    M[1, 2, 3, 0] = torch.nan
    expected = torch.ones(2, 5, 3, dtype=torch.float64)
    expected[1, 2] = torch.nan
    torch.testing.assert_close(la.singular_values(M), expected, equal_nan=True)
