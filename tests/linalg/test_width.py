"""A value lies within its bounds, its bounds within the width that was asked for; or `met` says
no."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rankscope.linalg as la


def gaussian(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def true_rank(M: Tensor) -> float:
    sigma = torch.linalg.svdvals(M.double())
    return float((sigma / sigma[0]).square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(600, 150), (150, 600), (400, 250)], ids=str)
@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-5])
def test_flat_matrices_of_an_mlp_s_shape(
    shape: tuple[int, int], dtype: torch.dtype, rtol: float
) -> None:
    """Left out, the second orthogonalisation cost a / b of the accuracy in every step: 150 for
    60."""
    for M in (gaussian(*shape).to(dtype), 0.02 * gaussian(*shape, seed=1).to(dtype)):
        found = la.stable_rank(M, rtol)
        assert found.lower <= true_rank(M) <= found.upper <= found.lower * (1 + rtol) * (1 + 1e-9)
        assert found.met is True


def test_w_and_an_update_at_initialisation() -> None:
    W, A = 0.02 * gaussian(600, 150), gaussian(4, 150, seed=1) / 12
    found = la.stable_rank(la.Dense(W) + la.LowRank(B=torch.zeros(600, 4), A=A))
    assert found.lower <= true_rank(W) <= found.upper <= found.lower * 1.001


def test_what_lanczos_does_not_reach_is_computed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are too few for any of these: each is finished from the eigenvalues of its Gram
    matrix."""
    monkeypatch.setattr("rankscope.linalg.sigma.PATIENCE", 2)
    stack = torch.stack([gaussian(120, 70), gaussian(120, 70, seed=1) * torch.logspace(0, -6, 70)])
    found = la.stable_rank(stack)
    assert found.method == "gram"
    assert found.confidence.tolist() == [1, 1]
    for M, one in zip(stack, (found[0], found[1]), strict=True):
        assert one.lower <= true_rank(M) <= one.upper <= one.lower * (1 + 1e-9)


def test_a_width_that_is_not_met_is_said() -> None:
    M = gaussian(90, 70).double()
    found = la.spectral_norm(M, 1e-15)
    assert found.met is False
    assert found.lower <= float(torch.linalg.matrix_norm(M, 2)) <= found.upper
    both = la.spectral_norm(torch.stack([M, 0 * M]), 1e-15)
    assert both.met.tolist() == [False, True]
    assert both[0].met is False
    assert both[1].met is True


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("n", [60, 1100])
def test_equal_singular_values_end_the_recursion_at_once(n: int, certify: bool) -> None:
    """The Krylov space of a multiple of an isometry has one dimension."""
    found = la.stable_rank(3 * torch.eye(n), certify=certify)
    assert found.lower <= n <= found.upper
    assert found.met is True
    assert found.lower >= n * (1 - 1e-3)


@pytest.mark.parametrize("exponent", [-44, -30, -20, -11, -9, 9, 20, 37])
def test_the_size_of_the_entries_plays_no_part(exponent: int) -> None:
    """Float32 squares of 1e-20 and 1e20 are 0 and infinite; a bound must not be made of them."""
    M = gaussian(70, 60).double() * torch.linspace(1, 3, 60).pow(4)
    scaled = (M / M.abs().max() * 10.0**exponent).float()
    pair = torch.stack([scaled, gaussian(70, 60)])
    for found in (
        la.stable_rank(scaled),
        la.stable_rank(pair)[0],
        la.stable_rank(scaled, certify=True),
    ):
        assert found.lower <= true_rank(scaled) <= found.upper <= found.lower * 1.001


@pytest.mark.parametrize(("b", "a"), [(-30, 25), (30, -35), (-20, -19), (18, 18)])
def test_factors_of_unlike_size_in_a_sum(b: int, a: int) -> None:
    """Only the product matters, however its size is shared out between the factors, and W beside
    it."""
    B, A = 10.0**b * gaussian(70, 3), 10.0**a * gaussian(3, 60, seed=1)
    W = (10.0 ** (a + b) * gaussian(70, 60, seed=2).double()).float()
    M = la.Dense(W) + la.LowRank(B=B, A=A, scale=0.5)
    dense = W.double() + 0.5 * B.double() @ A.double()
    for found in (la.stable_rank(M), la.stable_rank(M, certify=True)):
        assert found.lower <= true_rank(dense) <= found.upper <= found.lower * 1.001


def test_a_stable_rank_is_at_most_the_rank() -> None:
    Q = torch.linalg.qr(gaussian(90, 64).double()).Q
    for found in (
        la.stable_rank(Q),
        la.stable_rank(Q, certify=True),
        la.stable_rank(la.LowRank(B=Q, A=Q.mT)),
    ):
        assert found.value <= 64
        assert found.upper <= 64
        assert found.lower <= 64


def test_constant_matrices_need_the_allowance_below() -> None:
    """sigma_1 = c sqrt(m n) is a whole number here: what rounding adds to ||M x|| would lift
    the lower bound above it."""
    for side in range(50, 82):
        found = la.spectral_norm(torch.full((side, side), 3.0), 1e-3)
        assert found.lower <= 3 * side <= found.upper


def test_a_summary_holds_the_singular_values_of_its_one_decomposition() -> None:
    B, A = gaussian(30, 4)[None].expand(2, -1, -1), gaussian(4, 20)[None].expand(2, -1, -1)
    found = la.summary(la.LowRank(B=B, A=A))
    assert found.singular_values is not None
    torch.testing.assert_close(found.singular_values, la.singular_values(la.LowRank(B=B, A=A)))
    assert la.summary(gaussian(60, 50)).singular_values is None


def test_a_stable_rank_is_as_narrow_as_asked_though_sigma_1_stands_in_it_squared() -> None:
    """Flat spectra stop with bounds that are just narrow enough: (1 + rtol / 2)^2 is not."""
    for seed in range(60):
        start = torch.Generator().manual_seed(seed)
        M = torch.randn(60 + seed, 110 - seed // 2, generator=start, dtype=torch.float64)
        for rtol in (0.3, 0.1, 0.01):
            found = la.stable_rank(M, rtol, generator=start)
            assert found.met
            assert found.upper <= found.lower * (1 + rtol) * (1 + 1e-14)
