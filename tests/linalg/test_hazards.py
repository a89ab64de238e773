"""First show that the cheap way is wrong, then that ours is right on the same matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rankscope.linalg as la


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape))
    )


def exact(M: Tensor) -> float:
    return float(
        torch.linalg.matrix_norm(M.double()) ** 2 / torch.linalg.matrix_norm(M.double(), 2) ** 2
    )


def test_a_fixed_count_of_power_iterations_overstates_sr() -> None:
    M = draw(300, 300)
    v = draw(300, seed=1)
    for _ in range(5):
        v = M.mT @ (M @ v)
        v /= v.norm()
    under_converged = float(M.square().sum() / (M @ v).square().sum())
    assert under_converged > 1.05 * exact(M)
    found = la.stable_rank(M)
    assert found.value == pytest.approx(exact(M), rel=1e-3)
    assert found.lower <= exact(M) <= found.upper


def test_a_truncated_spectrum_is_bounded_by_the_truncation() -> None:
    W, B, A = draw(200, 200), draw(200, 8), draw(8, 200)
    M = W + 0.1 * B @ A
    sigma = torch.linalg.svdvals(M)[:8]
    truncated = float(sigma.square().sum() / sigma[0] ** 2)
    assert truncated <= 8 < exact(M)
    assert la.stable_rank(la.Dense(W) + la.LowRank(B=B, A=A, scale=0.1)).value == pytest.approx(
        exact(M), rel=1e-3
    )


def test_a_difference_of_rounded_checkpoints_reads_rounding_as_rank() -> None:
    W, B, A = draw(256, 256) * 0.05, draw(256, 8), draw(8, 256) * 1e-5
    true = exact(B @ A)
    low = W.bfloat16()
    tuned = (low.double() + B @ A).bfloat16()
    difference = la.Dense(tuned) - la.Dense(low)
    assert la.stable_rank(difference).value > 2 * true  # the hazard
    floor = la.rounding_floor(tuned)  # W itself is exactly what its checkpoint says
    assert float(floor) > 0.5 * float(torch.linalg.matrix_norm(B @ A))  # and its mark
    assert la.stable_rank(la.LowRank(B=B, A=A)).value == pytest.approx(
        true, rel=1e-12
    )  # the cure: factors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_rounding_floor_bounds_the_rounding(dtype: torch.dtype) -> None:
    W = draw(100, 100)
    error = float(torch.linalg.matrix_norm(W.to(dtype).double() - W))
    floor = float(la.rounding_floor(W, dtype))
    assert error <= floor <= 2 * error  # typical rounding is 1 / sqrt(3) of it


def test_float32_squares_vanish_and_ours_do_not() -> None:
    M = 1e-30 * draw(80, 90).float()
    assert float(M.square().sum()) == 0.0
    assert la.stable_rank(M).value == pytest.approx(exact(1e30 * M.double()), rel=1e-3)


def test_svd_lowrank_is_biased_low_on_a_flat_spectrum() -> None:
    M = draw(400, 400)
    sketched = float(torch.svd_lowrank(M.float(), q=6, niter=2)[1][0])
    true = float(torch.linalg.matrix_norm(M, 2))
    assert sketched < 0.99 * true
    assert la.spectral_norm(M, 1e-4).value == pytest.approx(true, rel=1e-4)
