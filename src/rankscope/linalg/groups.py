"""Which matrices of a batch are measured together: those of one live rank, as many as a cache holds.

Zero-padded factors (a pack of trials of different ranks) are cut to what they hold, so that rank 1 costs as rank 1; but small
matrices that are formed anyway stay together.
Letters: N matrices of a flat batch, m rows, n columns, r rank, *batch leading dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.operator import Operator

GROUP = 2**22  # entries of the matrices that are run together on a CPU: what its last-level cache holds
TOGETHER = (
    2**20
)  # entries up to which a sum's ranks are no reason to part: calls cost more than their padding
ACCELERATED = 2**28  # and on an accelerator, whose memory it is that counts


def groups(op: Operator) -> Iterator[tuple[Tensor, Operator]]:
    """(positions in the flattened batch (N,) int, the matrices there with batch shape (N,)): all of them, each
    once."""
    batch, (m, n) = op.batch_shape, op.shape[-2:]
    live = op.live().expand(batch).reshape(-1).cpu()
    room = GROUP if op.device.type == "cpu" else ACCELERATED
    if not isinstance(op, LowRank) and batch.numel() * m * n <= TOGETHER:
        live = live.amax().expand_as(live)
    for r in live.unique().tolist():
        size = r * (m + n) if isinstance(op, LowRank) else m * n
        for index in (live == r).nonzero()[:, 0].split(max(1, room // size)):
            yield index, op.at(index, batch, r or None)


def joined(parts: list[Tensor], order: list[Tensor]) -> Tensor:
    """Results (N, ...) of the groups, in the order of the batch."""
    together = torch.cat(parts)
    out = torch.empty_like(together)
    out[torch.cat(order)] = together
    return out
