"""What rounding may have done is in every certain bound: without it the bound is missed, and each
test here fails.

Where the last bit decides there is no slack: sigma_1 of a constant matrix c is c sqrt(m n), a
number known exactly where m n is a square.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import rankscope.linalg as la
from rankscope.linalg.certify import by_eigenvalues, certified_bound
from rankscope.linalg.scaled_group import normalized

SQUARES = [(side, side) for side in range(50, 66)] + [(100, 64), (147, 75), (98, 50), (64, 144)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def constant(m: int, n: int, c: float) -> tuple[Tensor, float]:
    """A matrix of entries c, a number of few bits, and its sigma_1."""
    root = round((m * n) ** 0.5)
    assert root * root == m * n
    return torch.full((m, n), c), c * root


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("c", [1.0, 3.0, 0.71875, 1.40625])
def test_lower_bounds_by_lanczos(c: float, dtype: torch.dtype) -> None:
    for m, n in SQUARES:
        M, sigma = constant(m, n, c)
        for seed in range(4):
            start = torch.Generator().manual_seed(seed)
            found = la.spectral_norm(M.to(dtype), 1e-3, generator=start)
            assert found.lower <= sigma <= found.upper
            assert found.value <= found.upper


def test_a_proof_just_below_sigma_1_is_still_a_bound_on_it() -> None:
    """Rounding lets the Cholesky factorisation pass for a tau a little below sigma_1."""
    passed = 0
    for m, n in SQUARES:
        M = torch.full((m, n), 1 / 3, dtype=torch.float64)
        sigma = Fraction(1 / 3) * round((m * n) ** 0.5)
        group, size = normalized(la.Dense(M[None]))
        for below in (1, 2, 4, 8, 16, 32):
            tau = torch.tensor([float(sigma) * (1 - below * 2.0**-53)], dtype=torch.float64)
            bound = certified_bound(group, tau / size) * size
            passed += int(bound.isfinite() and float(tau) < sigma)
            assert float(bound) == float("inf") or Fraction(float(bound)) >= sigma
    assert passed > 0


def test_eigenvalues_with_their_error() -> None:
    for m, n in SQUARES:
        M, sigma = constant(m, n, 3.0)
        group, size = normalized(la.Dense(M.double()[None]))
        value, lower, upper = (x * size for x in by_eigenvalues(group))
        assert lower <= sigma <= upper
        assert lower <= value <= upper


def cancelling(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """W, B, A with W + B A a matrix of small whole numbers, though B A has some of 44 bits."""
    source = torch.Generator().manual_seed(seed)
    B = torch.randint(-(2**20), 2**20, (70, 40), generator=source).double()
    A = torch.randint(-(2**20), 2**20, (40, 60), generator=source).double()
    return torch.randint(-3, 4, (70, 60), generator=source) - B @ A, B, A


@pytest.mark.parametrize("certify", [False, True])
def test_forming_a_cancelling_sum(certify: bool) -> None:
    """(W + B A) / 3: what float64 makes of W / 3 and of s = 1/3 stands out where the rest
    cancels."""
    for seed in range(12):
        W, B, A = cancelling(seed)
        op = la.Dense(W / 3) + la.LowRank(B=B, A=A, scale=1 / 3)
        product = np.longdouble(1 / 3) * (
            B.numpy().astype(np.longdouble) @ A.numpy().astype(np.longdouble)
        )
        exact = (W / 3).numpy().astype(np.longdouble) + product
        sigma = np.linalg.svd(exact.astype(np.float64), compute_uv=False)
        start = torch.Generator().manual_seed(seed)
        found = la.stable_rank(op, 1e-3, certify=certify, generator=start)
        assert found.lower <= ((sigma / sigma[0]) ** 2).sum() <= found.upper
        norm = la.spectral_norm(op, 1e-3, certify=certify, generator=start)
        assert norm.lower <= sigma[0] <= norm.upper


def test_factors_that_cancel() -> None:
    """s B A of nearly dependent columns: the core's rounding is relative to |s| ||B||
    ||A||, not to the product."""
    for seed in range(12):
        B0, A0 = draw(60, 1, seed=seed), draw(1, 50, seed=seed + 100)
        tiny = draw(60, 1, seed=seed + 200) * 1e-9
        B = torch.cat([B0, -(B0 + tiny)], dim=1)  # rounded here: what is stored is the truth
        A = torch.cat([A0, A0])
        left = (B[:, :1] + B[:, 1:]) @ A0  # of rank 1, exactly but for the last rounding
        true = float(torch.linalg.vector_norm(B[:, 0] + B[:, 1]) * torch.linalg.vector_norm(A0))
        assert float(torch.linalg.matrix_norm(left, 2)) == pytest.approx(true, rel=1e-12)
        found = la.spectral_norm(la.LowRank(B=B, A=A))
        assert found.lower <= true * (1 + 1e-14)
        assert true * (1 - 1e-14) <= found.upper
        rank = la.stable_rank(la.LowRank(B=B, A=A))
        assert rank.lower <= 1 + 1e-14
        assert rank.upper >= 1
