"""The map v -> M^T M v of a batch of matrices, which is all that Lanczos asks of them.

Letters: N matrices of a flat batch, m rows, n columns, p blocks of h rows that are read at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.linalg.dense import Dense
from rankscope.linalg.operator import Operator

CACHED = 2**22  # entries up to which a single matrix stays in the last-level cache from one step to the next
HEIGHT = (
    2**19
)  # entries of the blocks of rows of a larger one: from memory once, from a cache the second time
SPLIT = 4  # blocks of a single matrix that are products of one batch, so that every core has some


class Normal:
    """(N, n) -> (N, n)."""

    def __init__(self, op: Operator) -> None:
        N, m, n = op.shape
        self.blocks: list[Tensor] = []
        self.pieces: list[Operator] = []
        height = max(1, HEIGHT // n) if N * m * n > CACHED and N == 1 else m
        spans = [(i, min(i + height, m)) for i in range(0, m, height)]
        if not isinstance(op, Dense):
            self.pieces = [op.rows(i, j) for i, j in spans]
        elif N > 1:
            self.blocks = [op.W]
        else:
            self.blocks = [_split(op.W[0, i:j]) for i, j in spans]
        self.single = N == 1

    def __call__(self, v: Tensor) -> Tensor:
        if self.pieces:
            images = [piece.mT.matvec(piece.matvec(v)) for piece in self.pieces]
            return sum(images[1:], images[0])
        if not self.single:
            return _image(self.blocks[0], v)
        parts = [_image(W, v.expand(len(W), -1)).sum(0, keepdim=True) for W in self.blocks]
        return sum(parts[1:], parts[0])


def _image(W: Tensor, v: Tensor) -> Tensor:
    """W^T W v, (N, h, n), (N, n) -> (N, n). x W^T with x as a row is several times faster than W x with x as a column
    in torch's batched product on CPU."""
    return torch.bmm(torch.bmm(v[:, None], W.mT), W)[:, 0]


def _split(W: Tensor) -> Tensor:
    """(h, n) -> (p, h / p, n), the same memory."""
    p = next(p for p in range(SPLIT, 0, -1) if len(W) % p == 0)
    return W.unflatten(0, (p, -1))
