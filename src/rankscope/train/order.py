"""Which rows train together. Letters: N rows, B batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# batches whose rows are sorted by length together: padding nearly
# vanishes, and chance still decides
POOL = 32


def batches(lengths: Tensor, *, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of one batch after another, for ever. An epoch has every row once.

    Each epoch draws a permutation, cuts it into pools, sorts each pool by length, cuts it into
    batches (the last one is short) and draws the order of the batches. It depends on the lengths
    (N,), the batch size and the generator alone.
    """
    while True:
        pools = torch.randperm(len(lengths), generator=generator).split(POOL * batch_size)
        drawn = [
            batch
            for pool in pools
            for batch in pool[lengths[pool].argsort(stable=True)].split(batch_size)
        ]
        for i in torch.randperm(len(drawn), generator=generator).tolist():
            yield drawn[i]
