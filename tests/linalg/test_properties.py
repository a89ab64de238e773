"""Shapes, dtypes, sizes and spectra that nobody chose, against dense float64 SVD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rankscope.linalg as la

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ALIKE = settings(max_examples=120)
SIDES = st.integers(1, 110)  # up to 48 a dense SVD, above it Lanczos


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@ALIKE
@given(
    m=SIDES,
    n=SIDES,
    dtype=st.sampled_from(DTYPES),
    decay=st.floats(0, 3),
    seed=st.integers(0, 2**16),
    power=st.integers(-90, 90),
    rtol=st.sampled_from([1e-1, 1e-2, 1e-3, 1e-5]),
    certify=st.booleans(),
)
def test_the_interval_holds_the_truth(
    m: int,
    n: int,
    dtype: torch.dtype,
    decay: float,
    seed: int,
    power: int,
    rtol: float,
    certify: bool,
) -> None:
    M = draw(seed, m, n) / torch.arange(1, n + 1, dtype=torch.float64) ** decay
    M = M.to(dtype) if dtype == torch.float16 else (M * 2.0**power).to(dtype)
    sigma = torch.linalg.svdvals(M.double())
    sr = float((sigma / sigma[0]).square().sum())
    start = torch.Generator().manual_seed(seed + 1)
    found = la.stable_rank(M, rtol, certify=certify, generator=start)
    assert found.lower <= sr * (1 + 1e-13)
    assert sr * (1 - 1e-13) <= found.upper <= found.lower * (1 + rtol)
    assert found.confidence == 1.0 or not certify
    norm = la.spectral_norm(M, 1e-7, certify=certify, generator=start)
    assert norm.value == pytest.approx(float(sigma[0]), rel=1e-7)
    assert norm.lower <= float(sigma[0]) * (1 + 1e-13)
    assert norm.upper >= float(sigma[0]) * (1 - 1e-13)


@ALIKE
@given(
    m=SIDES,
    n=SIDES,
    r=st.integers(1, 40),
    padding=st.integers(0, 20),
    dtype=st.sampled_from(DTYPES),
    decay=st.floats(0, 3),
    seed=st.integers(0, 2**16),
    scale=st.floats(-64, 64).filter(lambda s: abs(s) > 1e-3),
)
def test_an_update_from_its_factors_is_exact(
    m: int, n: int, r: int, padding: int, dtype: torch.dtype, decay: float, seed: int, scale: float
) -> None:
    stretch = torch.arange(1, r + 1, dtype=torch.float64) ** -decay
    B, A = (draw(seed, m, r) * stretch).to(dtype), draw(seed + 1, r, n).to(dtype)
    sigma = torch.linalg.svdvals(scale * B.double() @ A.double())
    op = la.LowRank(
        B=torch.nn.functional.pad(B, (0, padding)),
        A=torch.nn.functional.pad(A, (0, 0, 0, padding)),
        scale=scale,
    )
    spectrum = torch.nn.functional.pad(la.singular_values(op), (0, len(sigma)))[: len(sigma)]
    assert float((spectrum - sigma).abs().max()) <= 1e-12 * float(sigma[0])
    found = la.summary(op)
    assert found.stable_rank.value == pytest.approx(
        float((sigma / sigma[0]).square().sum()), rel=1e-12
    )
    assert found.spectral_norm == pytest.approx(float(sigma[0]), rel=1e-12)
    assert found.frobenius_norm == pytest.approx(float(torch.linalg.vector_norm(sigma)), rel=1e-12)


@ALIKE
@given(
    m=SIDES,
    n=SIDES,
    r=st.integers(1, 130),
    dtype=st.sampled_from(DTYPES),
    ratio=st.floats(-3, 3),
    seed=st.integers(0, 2**16),
    rtol=st.sampled_from([1e-1, 1e-2, 1e-4]),
    certify=st.booleans(),
)
def test_the_interval_of_a_sum_holds_the_truth(
    m: int, n: int, r: int, dtype: torch.dtype, ratio: float, seed: int, rtol: float, certify: bool
) -> None:
    W, B, A = (draw(seed + i, *shape).to(dtype) for i, shape in enumerate([(m, n), (m, r), (r, n)]))
    op = la.Dense(W) + la.LowRank(B=B, A=A, scale=10**ratio / r**0.5)
    sigma = torch.linalg.svdvals(op.to_dense())
    sr = float((sigma / sigma[0]).square().sum())
    start = torch.Generator().manual_seed(seed + 3)
    found = la.stable_rank(op, rtol, certify=certify, generator=start)
    assert found.lower <= sr * (1 + 1e-13)
    assert sr * (1 - 1e-13) <= found.upper <= found.lower * (1 + rtol)
