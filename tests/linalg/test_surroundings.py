"""What is switched on around a measurement changes none of its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch

import rankscope.linalg as la


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients off": torch.no_grad,
}


def numbers(certify: bool) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    cpu = {"generator": source, "device": "cpu", "dtype": torch.float32}
    W, B, A = (torch.randn(*s, **cpu) for s in [(2, 90, 70), (2, 90, 4), (2, 4, 70)])
    low = la.LowRank(B=B, A=A, scale=0.5)
    found: list[object] = []
    for M in (W, W[0], low, la.Dense(W) + low, la.Dense(W[0]) - la.Dense(W[1])):
        for measure in (la.stable_rank, la.spectral_norm):
            one = measure(M, 1e-2, certify=certify, generator=torch.Generator().manual_seed(1))
            found += [one.value, one.lower, one.upper]
        found += [la.frobenius_norm(M), la.singular_values(M), la.effective_rank(M)]
        found.append(la.summary(M, exact=True).spectral_norm)
    return [torch.as_tensor(x, dtype=torch.float64, device="cpu") for x in found]


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("name", AROUND)
def test_numbers_are_those_without_it(name: str, certify: bool) -> None:
    plain: AbstractContextManager[object] = nullcontext()
    with plain:
        alone = numbers(certify)
    with AROUND[name]():
        inside = numbers(certify)
    for one, other in zip(alone, inside, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
