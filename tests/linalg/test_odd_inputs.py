"""Shapes, dtypes and sizes that nobody plans for, through every public entry: the value of a
float64 SVD, or one clear line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rankscope as rs
from rankscope.linalg import frobenius_norm, singular_values, summary

RANDOM = torch.Generator().manual_seed(7)
MOST = torch.finfo(torch.float64).max


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=RANDOM, dtype=torch.float64).to(dtype)


MATRICES = {
    "1 x n": drawn(1, 7),
    "m x 1": drawn(7, 1),
    "1 x 1": drawn(1, 1),
    "wide": drawn(2, 3000),
    "batch of 1": drawn(1, 4, 5),
    "3-D": drawn(3, 4, 5),
    "4-D": drawn(2, 3, 4, 5),
    "every second row": drawn(10, 12)[::2, ::3],
    "transposed": drawn(9, 4).T,
    "repeated rows": drawn(1, 5).expand(4, 5),
    "requires grad": drawn(4, 5).requires_grad_(),
    "parameter": torch.nn.Parameter(drawn(4, 5)),
    "subnormal float32": drawn(6, 5) * 1e-41,
    "least float32": torch.full((3, 4), 1e-45),
    "largest float32": torch.full((4, 4), torch.finfo(torch.float32).max),
    "largest float16": torch.full((4, 4), 65504.0, dtype=torch.float16),
    "least bfloat16": (drawn(4, 5) * 1e-38).bfloat16(),
}


@pytest.mark.parametrize("name", MATRICES)
def test_values_are_those_of_an_svd(name: str) -> None:
    M = MATRICES[name]
    exact = np.linalg.svd(M.detach().double().numpy(), compute_uv=False)
    sr = (exact**2).sum(-1) / exact.max(-1) ** 2
    found, top, more = rs.stable_rank(M), rs.spectral_norm(M), summary(M)
    for estimate, truth in ((found, sr), (top, exact.max(-1)), (more.stable_rank, sr)):
        np.testing.assert_allclose(estimate.value, truth, rtol=1e-10)
        assert np.all(np.asarray(estimate.lower) <= truth * (1 + 1e-13))
        assert np.all(np.asarray(estimate.upper) >= truth * (1 - 1e-13))
    frobenius = np.sqrt((exact**2).sum(-1))
    np.testing.assert_allclose(frobenius_norm(M), frobenius, rtol=1e-10)
    np.testing.assert_allclose(singular_values(M), exact, rtol=1e-10, atol=1e-10 * exact.max())
    share = exact / exact.sum(-1, keepdims=True)
    entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(-1)
    np.testing.assert_allclose(rs.effective_rank(M), np.exp(entropy), rtol=1e-6)
    if M.requires_grad:
        assert not torch.as_tensor(found.value).requires_grad


@pytest.mark.parametrize(
    ("M", "says"),
    [
        (torch.zeros(0, 5), r"with entries; got shape \(0, 5\)"),
        (torch.zeros(5, 0), r"with entries; got shape \(5, 0\)"),
        (torch.zeros(0, 4, 5), r"with entries; got shape \(0, 4, 5\)"),
        (torch.tensor(3.0), r"got torch.float32 \(\)"),
        (torch.ones(5), r"got torch.float32 \(5,\)"),
        (torch.ones(4, 5, dtype=torch.complex64), r"64 bits; got torch.complex64 \(4, 5\)"),
        (torch.ones(4, 5, dtype=torch.int64), "got torch.int64"),
        (torch.ones(4, 5, dtype=torch.bool), "got torch.bool"),
        (torch.ones(4, 5).to(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
        (torch.empty(4, 5, device="meta"), "found one on the meta device"),
        (torch.eye(4).to_sparse(), r"expected a dense tensor, .to_dense\(\); found torch.sparse"),
        (np.ones((4, 5)), "got ndarray"),
        ([[1.0, 2.0]], "got list"),
    ],
)
def test_what_is_no_real_matrix_is_refused(M: object, says: str) -> None:
    for measured in (rs.stable_rank, rs.spectral_norm, rs.effective_rank, summary):
        with pytest.raises(ValueError, match=says) as error:
            measured(M)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite(bad: float) -> None:
    M = drawn(3, 4, 5)
    M[1, 2, 3] = bad
    for found in (rs.stable_rank(M), rs.spectral_norm(M), summary(M).stable_rank):
        assert torch.isnan(torch.as_tensor(found.value)).tolist() == [False, True, False]
        assert [reason is not None for reason in found.reason] == [False, True, False]
    assert torch.isnan(singular_values(M)).all(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("side", [4, 1200])
def test_a_norm_beyond_float64_is_no_number_but_the_stable_rank_is(side: int) -> None:
    """diag(c, c/2, 0, ...) plus as much again: sr = 1.25, and sigma_1 = 2 c is beyond float64."""
    M = torch.zeros(side, side, dtype=torch.float64)
    M[0, 0], M[1, 1] = 0.75 * MOST, 0.375 * MOST
    assert rs.stable_rank(M).value == pytest.approx(1.25, rel=1e-3)
    assert rs.spectral_norm(M).value == pytest.approx(0.75 * MOST, rel=1e-3)
    doubled = rs.Dense(M) + rs.Dense(M)
    assert rs.stable_rank(doubled).value == pytest.approx(1.25, rel=1e-3)
    top = rs.spectral_norm(doubled)
    assert all(map(math.isnan, (top.value, top.lower, top.upper)))
    assert "outside float64's range" in str(top.reason)
    found = summary(doubled)
    norms = (found.spectral_norm, found.frobenius_norm, frobenius_norm(doubled))
    assert all(map(math.isnan, norms))


def test_factors_whose_sizes_leave_float64() -> None:
    """c and 1/c, of which neither's norm is in range; a product below the range; one above."""
    B, A = torch.full((4, 2), MOST, dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64)
    in_range = rs.LowRank(B=B, A=A * 1e-300)
    assert rs.stable_rank(in_range).value == pytest.approx(1, abs=1e-12)
    sigma = 2 * (MOST * 1e-300) * math.sqrt(20)  # of 4 x 5 equal entries
    assert rs.spectral_norm(in_range).value == pytest.approx(sigma, rel=1e-12)
    assert frobenius_norm(in_range) == pytest.approx(sigma, rel=1e-12)
    tiny = torch.full((2, 5), 1e-200, dtype=torch.float64)
    for update in (rs.LowRank(B=B, A=A), rs.LowRank(B=B * 0 + 1e-200, A=tiny)):
        assert rs.stable_rank(update).value == pytest.approx(1, abs=1e-12)
        found = rs.spectral_norm(update)
        assert math.isnan(found.value)
        assert "outside float64's range" in str(found.reason)
        assert math.isnan(frobenius_norm(update))
        assert torch.isnan(singular_values(update)).all()
    zero = rs.spectral_norm(rs.LowRank(B=B * 0, A=A))
    assert (zero.value, zero.reason) == (0.0, None)


def test_bounds_of_a_subnormal_norm_enclose_it() -> None:
    """Its last place is worth more than the bounds' width: they are rounded outwards."""
    M = torch.zeros(3, 3, dtype=torch.float64)
    M[0, 0], M[1, 1] = 12345 * 2.0**-1074, 2.0**-1074
    found = rs.spectral_norm(M)
    assert found.value == 12345 * 2.0**-1074
    assert found.lower <= 12344 * 2.0**-1074
    assert found.upper >= 12346 * 2.0**-1074
    assert found.upper <= 12348 * 2.0**-1074


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (np.ones((3, 4)), "got ndarray: torch.as_tensor makes one of an array."),
        ([[1.0]], "got list."),
        (torch.ones(3, 4, dtype=torch.int8), "(3, 4): give its values, such as .double(), times"),
        (torch.ones(3, 4).to(torch.float8_e5m2), "such as .double(), times their scales if it has"),
        (torch.ones(3, 4, dtype=torch.complex64), "got torch.complex64 (3, 4)."),
    ],
)
def test_what_is_no_matrix_is_told_how_to_become_one(given: Any, advice: str) -> None:
    with pytest.raises(ValueError, match="Dense needs a floating tensor") as error:
        rs.stable_rank(given)
    assert advice in str(error.value)


def test_an_operator_and_a_tensor_have_no_sum() -> None:
    """A TypeError, as Python has it, and no AttributeError from within."""
    W = torch.ones(3, 4)
    for add in (lambda: rs.Dense(W) + W, lambda: W + rs.Dense(W)):
        with pytest.raises(TypeError, match="unsupported operand"):
            add()
