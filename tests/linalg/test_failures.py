"""Failure is never a number: NaN and a reason, for the one matrix that it befalls."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import rankscope.linalg as la

NOT_FINITE = "has NaN or infinite entries, or overflows float64"


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", [8, 70])
def test_one_bad_entry(bad: float, certify: bool, size: int) -> None:
    M = draw(size, size + 3)
    M[3, 4] = bad
    found = la.stable_rank(M, certify=certify)
    assert all(math.isnan(x) for x in (found.value, found.lower, found.upper))
    assert found.reason == NOT_FINITE
    assert math.isnan(la.spectral_norm(M).value)
    assert math.isnan(la.frobenius_norm(M))
    assert math.isnan(la.effective_rank(M))


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("size", [8, 70])
def test_neighbours_in_a_batch_are_not_touched(certify: bool, size: int) -> None:
    stack = draw(4, size, size + 3)
    alone = la.stable_rank(
        stack[[0, 3]], certify=certify, generator=torch.Generator().manual_seed(0)
    )
    stack[1] = 0
    stack[2, 1, 1] = torch.nan
    found = la.stable_rank(stack, certify=certify, generator=torch.Generator().manual_seed(0))
    assert found.reason == (None, "is exactly zero", NOT_FINITE, None)
    assert_close(found.value[[0, 3]], alone.value, rtol=1e-6, atol=0)
    assert found.value[1:3].isnan().all()
    assert found[2].reason == NOT_FINITE


def test_zero_has_norms_and_no_stable_rank() -> None:
    for M in (
        torch.zeros(70, 80),
        torch.zeros(3, 4),
        la.LowRank(B=torch.zeros(70, 2), A=draw(2, 80)),
    ):
        assert la.spectral_norm(M).value == 0.0
        assert la.spectral_norm(M).reason is None
        assert la.frobenius_norm(M) == 0.0
        assert la.stable_rank(M).reason == "is exactly zero"
        assert math.isnan(la.stable_rank(M).value)
        assert math.isnan(la.effective_rank(M))


def test_bad_factors() -> None:
    B, A = draw(3, 70, 4), draw(3, 4, 80)
    good = la.stable_rank(la.LowRank(B=B, A=A)).value
    B[1, 0, 0] = torch.nan
    found = la.summary(la.LowRank(B=B, A=A))
    assert found.stable_rank.reason == (None, NOT_FINITE, None)
    assert_close(found.stable_rank.value[[0, 2]], good[[0, 2]], rtol=1e-13, atol=0)
    merged = la.stable_rank(la.Dense(draw(70, 80)) + la.LowRank(B=B, A=A))
    assert merged.value.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_entries(size: float, dtype: torch.dtype) -> None:
    M = draw(60, 90).to(torch.bfloat16)
    scaled = (M.double() * 2.0 ** round(math.log2(size))).to(dtype)
    if size > 1e-38:  # below it float32's own numbers lose digits
        assert la.stable_rank(scaled).value == pytest.approx(la.stable_rank(M).value, rel=1e-6)
    assert la.frobenius_norm(scaled) == pytest.approx(float(scaled.double().norm()), rel=1e-12)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300])
def test_entries_whose_squares_float64_cannot_hold(size: float) -> None:
    M = draw(60, 90).double()
    assert la.stable_rank(size * M).value == pytest.approx(la.stable_rank(M).value, rel=1e-6)
    assert la.frobenius_norm(size * M) == pytest.approx(size * la.frobenius_norm(M), rel=1e-12)


def test_a_batch_of_every_scale() -> None:
    M = draw(60, 50).double()
    sizes = torch.tensor([1e-200, 1e-30, 1.0, 1e30, 1e200], dtype=torch.float64)
    found = la.summary(sizes[:, None, None] * M)
    assert_close(
        found.stable_rank.value,
        torch.full((5,), la.stable_rank(M).value, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )
    assert_close(
        found.spectral_norm / sizes, (found.spectral_norm / sizes)[2].expand(5), rtol=1e-6, atol=0
    )


def test_views_are_measured_where_they_lie() -> None:
    M = draw(120, 160)
    view = M[::2, 5:101]
    assert la.stable_rank(view).value == pytest.approx(
        la.stable_rank(view.contiguous()).value, rel=1e-6
    )
    expanded = M.expand(3, 120, 160)
    assert_close(
        la.stable_rank(expanded).value,
        torch.full((3,), la.stable_rank(M).value).double(),
        rtol=1e-6,
        atol=0,
    )


def test_gradients_are_not_recorded() -> None:
    W = draw(60, 60).requires_grad_()
    assert isinstance(la.stable_rank(W).value, float)
    assert not la.singular_values(W).requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_the_same_on_an_accelerator() -> None:
    M, B, A = draw(3, 200, 300), draw(3, 200, 4), draw(3, 4, 300)
    for certify in (False, True):
        here = la.stable_rank(la.Dense(M) + la.LowRank(B=B, A=A), certify=certify)
        there = la.stable_rank(
            la.Dense(M.cuda()) + la.LowRank(B=B.cuda(), A=A.cuda()), certify=certify
        )
        assert_close(there.value, here.value, rtol=1e-5, atol=0)
    assert_close(
        la.stable_rank(la.LowRank(B=B.cuda(), A=A.cuda())).value,
        la.stable_rank(la.LowRank(B=B, A=A)).value,
    )
    assert_close(la.captured_energy(M.cuda(), M.cuda(), 3), la.captured_energy(M, M, 3))
    assert_close(la.singular_values(M.cuda()), la.singular_values(M))


def test_of_a_zero_matrix_and_of_one_that_is_not_finite_nothing_is_merely_likely() -> None:
    M = torch.randn(3, 120, 100, generator=torch.Generator().manual_seed(0))
    M[1], M[2, 5, 7] = 0, torch.nan
    found = la.spectral_norm(M)
    assert found.confidence.tolist() == [1 - 1e-3, 1, 1]
    assert found.value[1] == 0
    assert found.value[2].isnan()


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("shape", [(20, 30), (70, 80)])
def test_a_sum_that_cancels_is_zero_to_rounding_only(certify: bool, shape: tuple[int, int]) -> None:
    """W is B A as float64 has it; what that lost is W + (-B A), by exact arithmetic."""
    (m, n), r = shape, 3
    B, A = draw(m, r).double() / 3, draw(r, n).double() / 7
    product = [
        [
            sum(Fraction(b) * Fraction(a) for b, a in zip(row, column, strict=True))
            for column in A.mT.tolist()
        ]
        for row in B.tolist()
    ]
    W = torch.tensor([[float(x) for x in row] for row in product], dtype=torch.float64)
    lost = torch.tensor(
        [
            [float(Fraction(w) - x) for w, x in zip(*rows, strict=True)]
            for rows in zip(W.tolist(), product, strict=True)
        ]
    )
    truth = float(torch.linalg.matrix_norm(lost.double(), 2))
    assert truth > 0
    low = la.LowRank(B=B, A=A)
    cancelling = la.Dense(low.to_dense()) - low  # as it is formed
    nearly = la.Dense(W) - low
    for op in (cancelling, nearly):
        found = la.spectral_norm(op, certify=certify)
        assert found.lower <= truth <= found.upper < 1e-12
        assert not found.met
        assert found.reason is None
    vanished = la.stable_rank(cancelling, certify=certify)
    assert math.isnan(vanished.value)
    assert math.isnan(vanished.lower)
    assert math.isnan(vanished.upper)
    assert vanished.reason == "is zero to rounding: its terms cancel"
    for op in (low - low, low + la.LowRank(B=-2 * B, A=A, scale=0.5), nearly):  # stay factors, too
        for found in (la.stable_rank(op, certify=certify), la.summary(op).stable_rank):
            assert math.isnan(found.value)
            assert math.isnan(found.lower)
            assert found.reason == "is zero to rounding: its terms cancel"
        assert math.isnan(la.effective_rank(op))
    beside = la.LowRank(B=torch.stack([B, B]), A=A, scale=torch.tensor([1.0, 2.0])) - low
    assert la.stable_rank(beside).reason == ("is zero to rounding: its terms cancel", None)
    torch.testing.assert_close(
        la.stable_rank(beside)[1].value, la.stable_rank(low).value, rtol=1e-12, atol=0
    )
    same = la.Dense(W.float()) - la.Dense(W.float().double())
    assert la.stable_rank(same).reason == "is exactly zero"
    assert la.spectral_norm(same).upper == 0
