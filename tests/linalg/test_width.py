"""A value lies within its bounds, its bounds within the width that was asked for; or `met` says
no."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rankscope.linalg as la
from rankscope.linalg.scaled_group import normalized
from rankscope.linalg.sigma import SigmaOptions, _products_in


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


def test_what_lanczos_does_not_reach_is_computed_exactly() -> None:
    """Hundreds of singular values close to sigma_1: the eigenvalues of the Gram matrix cost less
    than the steps that would tell them apart."""
    U, V = (torch.linalg.qr(gaussian(310, 300, seed=s).double()).Q for s in (0, 1))
    stack = torch.stack(
        [U * (1 - gap * torch.linspace(0, 1, 300) ** 2) @ V.mT for gap in (1e-2, 1e-1)]
    )
    found = la.stable_rank(stack, 1e-5)
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
def test_a_proof_for_equal_singular_values(n: int, certify: bool) -> None:
    found = la.stable_rank(3 * torch.eye(n), certify=certify)
    assert found.lower <= n <= found.upper
    assert found.met is True
    assert found.lower >= n * (1 - 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(60, 60), (400, 300), (1100, 1100), (1200, 1500)], ids=str)
def test_few_distinct_singular_values_are_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The Krylov space of d distinct values has d dimensions: nothing but rounding is left, and of
    that only float64's."""
    n = min(shape)
    for blocks in ((1.0,), (3.0, 1.0), (2.0, 1.0, 0.5)):
        sigma = torch.tensor(blocks).double().repeat_interleave(n // len(blocks))
        M = torch.zeros(shape, dtype=dtype)
        M[range(len(sigma)), range(len(sigma))] = sigma.to(dtype)  # exact: numbers of few bits
        M = M[:, torch.arange(shape[1] - 1, -1, -1)]
        rank = float((sigma / sigma[0]).square().sum())
        for seed in range(3):
            found = la.stable_rank(M, generator=torch.Generator().manual_seed(seed))
            assert found.lower <= rank <= found.upper <= found.lower * (1 + 1e-9)
            assert found.value == pytest.approx(rank, rel=1e-12)
            assert found.met is True
            assert found.reason is None
            assert found.products < 40


def test_an_ended_krylov_space_among_others_is_exact_and_leaves_them_alone() -> None:
    pair = torch.stack([torch.eye(90), gaussian(90, 90)])
    start = torch.Generator()
    found = la.stable_rank(pair, generator=start.manual_seed(0))
    alone = la.stable_rank(pair[1], generator=start.manual_seed(0))
    assert found[0].lower >= 90 * (1 - 1e-11)
    assert found[1].upper == pytest.approx(alone.upper, rel=1e-6)


def test_only_an_ended_krylov_space_is_run_again_in_float64() -> None:
    """It costs twice a run in float32. A leading value that stands out is found as soon, and needs
    no more digits than were asked for."""
    power = torch.linalg.qr(gaussian(120, 80)).Q / torch.arange(1, 81)
    isometry = torch.linalg.qr(gaussian(120, 80, seed=1)).Q
    group, _ = normalized(la.Dense(torch.stack([power, isometry, gaussian(120, 80), power * 0])))
    g = torch.randn(80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, again = _products_in(torch.float32, group, SigmaOptions(1e-2), g, 128)
    assert again.tolist() == [False, True, False, False]
    _, again = _products_in(torch.float32, group, SigmaOptions(1e-9), g, 128)
    assert again.tolist() == [True, True, True, False]
    # known as soon as a look is taken, not only where all steps there are have been
    _, again = _products_in(torch.float32, group, SigmaOptions(1e-9), g, 20)
    assert again.tolist() == [True, True, True, False]
    _, again = _products_in(torch.float64, group, SigmaOptions(1e-9), g, 128)
    assert not again.any()


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-6, 1e-8, 1e-9, 1e-10])
def test_every_width_that_float64_allows_is_met(rtol: float, certify: bool) -> None:
    """Also just above what the rounding of norm, recursion and proof takes of it."""
    matrices = [gaussian(300, 75), gaussian(80, 240).double(), torch.full((70, 60), 1 / 3)]
    for seed, M in enumerate(matrices):
        start = torch.Generator().manual_seed(seed)
        rank = la.stable_rank(M, rtol, certify=certify, generator=start)
        norm = la.spectral_norm(M, rtol, certify=certify, generator=start)
        assert rank.met
        assert rank.upper <= rank.lower * (1 + rtol) * (1 + 1e-14)
        assert norm.met
        assert norm.upper <= norm.lower * (1 + rtol) * (1 + 1e-14)
        assert rank.lower * (1 - 1e-13) <= true_rank(M) <= rank.upper * (1 + 1e-13)


@pytest.mark.parametrize("certify", [False, True])
def test_terms_that_cancel_cost_no_more_width_than_forming_them(certify: bool) -> None:
    """A difference is formed before it is squared: the rounding of M^T M is relative to it, not to
    its terms, which are 3,000 times as large."""
    W = gaussian(130, 100).double()
    M = la.Dense(W + 1e-3 * gaussian(130, 100, seed=1)) - la.Dense(W)
    for rtol in (1e-3, 1e-6, 1e-8):
        found = la.stable_rank(M, rtol, certify=certify, generator=torch.Generator())
        assert found.met
        assert found.lower <= true_rank(M.to_dense()) <= found.upper


@pytest.mark.parametrize("bad", [torch.inf, torch.nan, 0.0])
def test_one_bad_matrix_of_a_batch_takes_no_width_from_the_others(bad: float) -> None:
    M = torch.stack([gaussian(90, 70), gaussian(90, 70) * bad, gaussian(90, 70, seed=1)])
    found = la.stable_rank(M, 1e-2, generator=torch.Generator())
    for k in (0, 2):
        assert found[k].met
        assert found[k].lower <= true_rank(M[k]) <= found[k].upper <= found[k].lower * 1.01
    assert found[1].reason is not None


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
    for seed in range(20):
        start = torch.Generator().manual_seed(seed)
        M = torch.randn(60 + seed, 110 - seed // 2, generator=start, dtype=torch.float64)
        for rtol in (0.3, 0.1, 0.01):
            found = la.stable_rank(M, rtol, generator=start)
            assert found.met
            assert found.upper <= found.lower * (1 + rtol) * (1 + 1e-14)
