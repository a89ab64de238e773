"""Batches of rows of similar length: an epoch is a permutation, seeds repeat, padding nearly
vanishes."""

from __future__ import annotations

import itertools

import torch

from rankscope.train.data import length_grouped_batches


def epoch(lengths: torch.Tensor, seed: int, *, size: int = 4, skip: int = 0) -> list[torch.Tensor]:
    count = -(-len(lengths) // size)
    drawn = length_grouped_batches(
        lengths, batch_size=size, generator=torch.Generator().manual_seed(seed)
    )
    return list(itertools.islice(drawn, skip * count, (skip + 1) * count))


def test_an_epoch_has_every_row_once_and_the_next_is_another() -> None:
    lengths = torch.arange(10) % 3
    first, second = epoch(lengths, 0), epoch(lengths, 0, skip=1)
    for rows in (first, second):
        assert sorted(torch.cat(rows).tolist()) == list(range(10))
        assert sorted(map(len, rows)) == [2, 4, 4]
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_order_is_a_function_of_the_seed() -> None:
    lengths = torch.arange(50) % 7
    assert all(torch.equal(a, b) for a, b in zip(epoch(lengths, 3), epoch(lengths, 3), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(epoch(lengths, 3), epoch(lengths, 4), strict=True)
    )


def test_rows_of_similar_length_stand_together_in_no_order_of_length() -> None:
    lengths = torch.randint(3, 60, (2000,), generator=torch.Generator().manual_seed(0))
    drawn = epoch(lengths, 0, size=16)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in drawn) / int(lengths.sum())
    plain = torch.randperm(2000, generator=torch.Generator().manual_seed(0)).split(16)
    assert (
        padded < 1.1 < 1.5 < sum(len(r) * int(lengths[r].max()) for r in plain) / int(lengths.sum())
    )
    longest = [int(lengths[rows].max()) for rows in drawn]
    rises = sum(b > a for a, b in itertools.pairwise(longest))
    assert 0.3 < rises / len(drawn) < 0.7  # a training run does not go from short to long
