"""A pack of DoRA layers forms each trial's weight or multiplies the outputs: the same function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rankscope.train.packed import DropoutMasks, rank_buckets
from rankscope.train.packed_dora import PackedDoRA

RANKS, m, n, B, T = [1, 4, 20], 6, 5, 2, 3
K = len(RANKS)


def layer(*, bias: bool = True, start: bool = False) -> PackedDoRA:
    draw = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    base = nn.Linear(n, m, bias=bias, dtype=torch.float64).requires_grad_(False)
    base.weight.copy_(drawn(m, n))
    cuts = rank_buckets(RANKS)
    sizes = [(c.stop - c.start, max(RANKS[c])) for c in cuts]
    masks = DropoutMasks(K, 0, torch.device("cpu"))
    masks.batch = B
    return PackedDoRA(
        base,
        B=[nn.Parameter(drawn(k, m, r)) for k, r in sizes],
        A=[nn.Parameter(drawn(k, r, n)) for k, r in sizes],
        magnitude=[nn.Parameter(drawn(k, m)) for k, _ in sizes],
        start=[(drawn(k, m, r), drawn(k, r, n)) for k, r in sizes] if start else (),
        scale=torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64),
        buckets=cuts,
        dropout=0.0,
        masks=masks,
    )


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "tokens"),
    [((K * B, T, n), None), ((K, B, T, n), 1), ((1, B, T, n), None), ((K * B * T, n), None)],
)
def test_both_ways_are_one_function(
    shape: tuple[int, ...], tokens: int | None, bias: bool, start: bool
) -> None:
    site = layer(bias=bias, start=start)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for site.forms_weights in (True, False):
        x = x.detach().requires_grad_()
        y = site(x, tokens=tokens)
        weights = torch.arange(y.numel(), dtype=torch.float64).view(y.shape).cos()
        trained = [x, *site.B, *site.A, *site.magnitude]
        found.append([y, *torch.autograd.grad((y * weights).sum(), trained)])
    assert_close(*found, rtol=1e-9, atol=1e-12)


def test_weights_are_formed_where_that_takes_less() -> None:
    """By the operations a row: 2 n m for the gradient of W + s B A beside 6 r (m + n) for the
    factors and 400 m for the outputs. Here 2 n below 12 r + 400."""

    def forms(width: int, rank: int) -> bool:
        base = nn.Linear(width, width)
        factors = {
            "B": [torch.zeros(2, width, rank)],
            "A": [torch.zeros(2, rank, width)],
            "magnitude": [torch.ones(2, width)],
        }
        masks = DropoutMasks(2, 0, torch.device("cpu"))
        rest = {"scale": torch.ones(2), "buckets": [slice(0, 2)], "dropout": 0.0, "masks": masks}
        return PackedDoRA(base, **factors, **rest).forms_weights

    assert [forms(w, r) for w, r in ((128, 1), (768, 8), (768, 64), (768, 128), (768, 768))] == [
        True, False, False, True, True
    ]  # fmt: skip
