"""The bounds themselves: coverage, certainty, proof, and what float32 may add."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import rankscope.linalg as la
from rankscope.linalg.certify import certified_bound
from rankscope.linalg.scaled_group import normalized
from rankscope.linalg.tridiagonal import Tridiagonal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def failures(confidence: float, rtol: float, trials: int, rounds: int = 10) -> int:
    """How often the upper bound lies below sigma_1, over random matrices whose sigma_1 stands out a
    little."""
    count = 0
    sigma = torch.cat([torch.ones(1), torch.linspace(0.9, 0.1, 49)]).double()
    for seed in range(rounds):
        V = torch.linalg.qr(
            draw(trials // rounds, 50, 50, seed=seed)
        ).Q  # U = 1: Lanczos cannot tell
        source = torch.Generator().manual_seed(seed)
        found = la.spectral_norm(
            sigma[:, None] * V.mT, rtol, confidence=confidence, generator=source
        )
        count += int((found.upper < 1 - 1e-12).sum())
    return count


def test_two_thousand_trials_at_999_per_mille() -> None:
    assert failures(confidence=1 - 1e-3, rtol=0.3, trials=2000) <= 6


def test_a_lower_confidence_does_fail_sometimes_and_not_more_often_than_it_says() -> None:
    """So the bound is a bound of probability, and the test above can fail."""
    assert 5 <= failures(confidence=0.5, rtol=0.3, trials=500) <= 250
    assert failures(confidence=0.9, rtol=0.3, trials=500) <= 70


def test_a_matrix_of_little_tail_has_a_certain_bound_without_proof() -> None:
    U, V = (torch.linalg.qr(draw(100, 100, seed=s)).Q for s in (1, 2))
    M = U * torch.arange(1, 101).double() ** -1.0 @ V.mT
    found = la.stable_rank(M)
    assert found.confidence == 1.0
    assert found.lower <= float((torch.arange(1, 101).double() ** -2).sum()) <= found.upper
    flat = la.stable_rank(draw(100, 100))
    assert flat.confidence == 0.999


@pytest.mark.parametrize("excess", [-1e-6, -1e-3, 1e-6, 1e-3])
def test_a_proof_exists_above_sigma_1_and_none_below(excess: float) -> None:
    M = draw(80, 60)
    sigma = torch.linalg.matrix_norm(M, 2)
    group, size = normalized(la.Dense(M[None]))
    bound = certified_bound(group, (sigma * (1 + excess))[None] / size) * size
    assert bool(bound.isfinite()) == (excess > 0)
    if excess > 0:
        assert sigma <= bound <= sigma * (1 + excess + 1e-9)


def test_where_lanczos_misses_sigma_1_no_proof_is_found_and_eigenvalues_are_taken() -> None:
    """A matrix made against a known start: its first right singular vector is orthogonal to it."""
    start = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    V = torch.linalg.qr(torch.column_stack([start, draw(60, 59)])).Q.roll(1, 1)
    first, others = V[:, :1], V[:, 1:] @ torch.linalg.qr(draw(59, 59, seed=1)).Q
    sigma = torch.tensor([1.2, *torch.linspace(1, 0.1, 59)], dtype=torch.float64)
    M = torch.linalg.qr(draw(80, 60, seed=2)).Q * sigma @ torch.column_stack([first, others]).mT
    for certify in (False, True):
        source = torch.Generator().manual_seed(0)
        found = la.spectral_norm(M, 0.05, certify=certify, generator=source)
        assert bool(found.upper >= 1.2 - 1e-9) is certify
    assert found.lower <= 1.2 + 1e-12
    assert found.upper <= found.lower * (1 + 1e-9)


def test_a_narrow_wish_is_met_in_float64() -> None:
    M = draw(200, 150).float()
    found = la.spectral_norm(M, 1e-11)
    true = float(torch.linalg.matrix_norm(M.double(), 2))
    assert found.lower <= true * (1 + 1e-14)
    assert true <= found.upper <= found.lower * (1 + 1e-11)
    impossible = la.spectral_norm(M, 1e-15)  # what float64 cannot give is not claimed
    assert impossible.lower <= true <= impossible.upper


def test_randomness_is_an_argument() -> None:
    M = draw(100, 100)
    before = torch.random.get_rng_state()
    first, other = la.stable_rank(M), la.stable_rank(M)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.seed is not None
    assert first.seed != other.seed  # drawn afresh: no matrix can be made against it
    assert first.upper != other.upper
    again = la.stable_rank(M, generator=torch.Generator().manual_seed(first.seed))
    assert (again.value, again.lower, again.upper) == (first.value, first.lower, first.upper)
    assert again.seed is None


def test_pivots_against_dense_eigenvalues() -> None:
    """(12) and (14) evaluated from the recurrence, and from the eigenvalues and the
    determinant that they stand for."""
    a, b = draw(5, 6, seed=3).abs() + 1, draw(5, 6, seed=4).abs() * 0.3
    one, six = torch.ones(5).double(), torch.full((5,), 6)
    T = Tridiagonal(a, b, six, 4 * one, 0 * one, 0 * one, 3 * one)
    dense = (
        torch.diag_embed(a)
        + torch.diag_embed(b[:, :5], offset=1)
        + torch.diag_embed(b[:, :5], offset=-1)
    )
    values = torch.linalg.eigvalsh(dense)
    assert_close(T.top[0], values[:, -1])
    upper, certain = T.upper(torch.tensor(1e-6))
    likely = upper[~certain].square()
    growth = (likely[:, None] - values[~certain]).log().sum(1) - b[~certain].log().sum(1)
    assert_close(growth, 3 * one[: len(growth)], rtol=1e-2, atol=0)
    assert bool((upper.square() >= values[:, -1]).all())


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4])
def test_forming_in_float32_is_counted_in_the_bounds(rtol: float) -> None:
    """A sum is formed in float32 where the proved error of that is small beside the wish, only
    there."""
    W, B, A = draw(120, 90).float(), draw(120, 60, seed=1).float(), draw(60, 90, seed=2).float()
    op = la.Dense(W[None]) + la.LowRank(B=B[None], A=A[None], scale=0.2)
    subject, size = normalized(op, slack=rtol / 24)
    exact, _ = normalized(op)
    off = abs(float(subject.norm * size / torch.linalg.matrix_norm(op.to_dense())) - 1)
    assert off <= float(subject.error) <= max(rtol / 24, 1e-9)
    assert (float(subject.error) > 1e-9) == (rtol >= 1e-2)
    assert float(exact.error) < 1e-9
    sigma = torch.linalg.svdvals(op.to_dense()[0])
    found = la.stable_rank(op, rtol)
    assert (
        found.lower <= (sigma / sigma[0]).square().sum() <= found.upper <= found.lower * (1 + rtol)
    )
