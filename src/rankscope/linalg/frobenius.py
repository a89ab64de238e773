"""Passes over an operator in blocks of rows, in float64: norms, row norms, products. The matrix is
never formed.

Letters: m rows, n columns, h rows of a block, *batch leading dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from rankscope.linalg import low_rank
from rankscope.linalg.dense import Dense
from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.operator import Operator, Sum, row_products
from rankscope.linalg.rounding import gamma
from rankscope.linalg.scaled import ROWS, Scaled

# entries of a float64 block, per thread: half a megabyte, which a core's own cache holds
BLOCK = 2**16
ACCELERATED = 2**24  # on an accelerator, where launches cost most
PRODUCT = 2**19  # of a block that is a product or a factor of one: tall enough for full speed
CHUNK = 2**16  # entries whose squares are added up in one sum
PANEL = 96  # columns of the Gram matrix that are computed together


def row_blocks(op: Operator, entries: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """(first row, block (*batch, h, n) float64) over all rows. The next block overwrites the memory
    of the last one."""
    m, n = op.shape[-2:]
    if entries is None:
        entries = BLOCK * torch.get_num_threads() if op.device.type == "cpu" else ACCELERATED
    height = max(1, min(m, entries // (n * max(1, prod(op.batch_shape)))))
    memory = torch.empty(prod(op.batch_shape) * height * n, dtype=torch.float64, device=op.device)
    for start in range(0, m, height):
        h = min(height, m - start)
        block = memory[: prod(op.batch_shape) * h * n].view(*op.batch_shape, h, n)
        op.rows_into(block, start)
        yield start, block


def frobenius_squared(op: Operator) -> Tensor:
    """||M||_F^2, (*batch) float64: docs/math.md, (4). A LowRank's from its core,
    anything else block by block.

    Blocks of W + s B A are summed before they are squared: the same number as ||W||^2 + 2 s <W,
    BA> + s^2 ||BA||^2, and right also where the terms cancel.
    """
    if isinstance(op, LowRank):
        return low_rank.frobenius_norm(op).square()
    total = torch.zeros(op.batch_shape, dtype=torch.float64, device=op.device)
    for _, block in row_blocks(op):
        total += _squares(block)
    return total


def _squares(block: Tensor) -> Tensor:
    """||block||_F^2, (*batch, h, n) -> (*batch), in short sums: see `summation_error`."""
    parts = block.split(max(1, CHUNK // block.shape[-1]), dim=-2)
    if prod(block.shape[:-2]) == 1:  # of one matrix: the same sum in half the time
        flat = [part.reshape(-1) for part in parts]
        sums = [part.dot(part).reshape(block.shape[:-2]) for part in flat]
    else:
        sums = [torch.linalg.vector_norm(part, dim=(-2, -1)).square() for part in parts]
    return sum(sums[1:], sums[0])


def summation_error(op: Operator) -> float:
    """Relative error of ||M||_F, the root of `frobenius_squared`, beside that of forming the rows:
    docs/math.md, (4)."""
    m, n = op.shape[-2:]
    return gamma(max(n, min(CHUNK, m * n)) // 2 + m + 8)


def formed(
    op: Operator, dtype: torch.dtype, *, within: torch.dtype = torch.float64
) -> tuple[Dense, Tensor]:
    """The matrix in ``dtype``, its entries computed in ``within``; and ||M||_F^2 (*batch) float64
    of these entries. For matrices that fit in a cache: each step then reads them without their
    factors."""
    M = torch.empty(op.shape, dtype=dtype, device=op.device)
    if within == dtype:
        op.rows_into(M, 0)
        return Dense(M), frobenius_squared(Dense(M))
    total = torch.zeros(op.batch_shape, dtype=torch.float64, device=op.device)
    for start, block in row_blocks(op, PRODUCT):
        total += _squares(block)
        M[..., start : start + block.shape[-2], :] = block
    return Dense(M), total


def formation_error(op: Operator, dtype: torch.dtype = torch.float64) -> float:
    """What rounding adds when rows of M are formed in `dtype`, in Frobenius norm, relative to its
    magnitude: docs/math.md, (5)."""
    return gamma(op.terms + 8, dtype)


def row_norms(op: Operator) -> Tensor:
    """Euclidean norm of every row, (*batch, m) float64."""
    return torch.cat(
        [torch.linalg.vector_norm(block, dim=-1) for _, block in row_blocks(op)], dim=-1
    )


def product(op: Operator, x: Tensor, *, transposed: bool = False) -> Tensor:
    """M x, (*batch, n) -> (*batch, m), or M^T x: every product and sum in float64, factors not
    multiplied out."""
    match op:
        case Sum():
            return product(op.left, x, transposed=transposed) + product(
                op.right, x, transposed=transposed
            )
        case LowRank():
            first, second = (op.B, op.A) if transposed else (op.A, op.B)
            y = product(Dense(first), x, transposed=transposed)
            return product(Dense(second), y, transposed=transposed) * op.scale[..., None]
        case Scaled():
            before = (op.dim == ROWS) == transposed  # d meets x itself, or the product
            y = product(op.M, x * op.d if before else x, transposed=transposed)
            return y if before else y * op.d
    if not transposed:
        return torch.cat([row_products(x, block) for _, block in row_blocks(op)], dim=-1)
    parts = [row_products(x[..., i : i + block.shape[-2]], block.mT) for i, block in row_blocks(op)]
    return sum(parts[1:], parts[0])


def gram(op: Operator) -> Tensor:
    """M^T M, (N, n, n) float64 of a flat batch, summed block by block: docs/math.md, (16). Only
    the lower triangle and what lies next to the diagonal are computed."""
    N, _, n = op.shape
    total = torch.zeros(N, n, n, dtype=torch.float64, device=op.device)
    width = max(PANEL, -(-n // 8))
    for _, block in row_blocks(op, PRODUCT):
        for j in range(0, n, width):
            total[:, j:, j : j + width].baddbmm_(block[..., j:].mT, block[..., j : j + width])
    return total
