"""Which rows trained updates are evaluated again on."""

from __future__ import annotations

import torch

from rankscope.train.data import Encoded


def first_rows(split: Encoded, count: int) -> Encoded:
    """The first rows of a split, without those of a second validation split."""
    return _rows(split, torch.arange(min(count, len(split) - split.beside)))


def some_rows(split: Encoded, count: int) -> Encoded:
    """Rows drawn without replacement, always the same; all where there are no more."""
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return _rows(split, drawn[:count].sort().values)


def _rows(split: Encoded, rows: torch.Tensor) -> Encoded:
    inputs = {name: x[rows] for name, x in split.inputs.items()}
    return Encoded(inputs, split.labels[rows], split.lengths[rows], 0, split.left)
