"""Bounds from the Lanczos matrix alone, where the start vector has met nothing of what is
largest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from rankscope.linalg.tridiagonal import Tridiagonal

SEEN = torch.tensor(
    [3.0, 2.5, 1.0, 0.5], dtype=torch.float64
)  # singular values that the start vector has a part in


def lanczos(squares: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """a and b of `steps` steps on diag(squares) from the vector of ones, orthogonalised twice."""
    v = torch.ones_like(squares) / len(squares) ** 0.5
    basis, a, b = [v], [], []
    for _ in range(steps):
        w = squares * basis[-1]
        a.append(basis[-1] @ w)
        for _ in range(2):
            w = w - torch.stack(basis).T @ (torch.stack(basis) @ w)
        b.append(w.norm())
        basis.append(w / w.norm())
    return torch.stack(a), torch.stack(b)


@pytest.mark.parametrize("unseen", [4.0, 7.0, 20.0])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_certain_bound_counts_what_was_not_seen(unseen: float, steps: int) -> None:
    """M has one more singular value, the largest one, on a vector that is orthogonal to
    the start: the matrix T_k knows nothing of it, only ||M||_F does. A bound that is
    called certain lies above it."""
    a, b = lanczos(SEEN.square(), steps)
    frobenius = (SEEN.square().sum() + unseen**2).sqrt()
    found = Tridiagonal(
        a[None],
        b[None],
        steps=torch.tensor([steps]),
        frobenius=frobenius[None],
        allowance=torch.tensor([1e-12], dtype=torch.float64),
        below=torch.tensor([1e-12], dtype=torch.float64),
        log_target=torch.tensor([1e9], dtype=torch.float64),  # no probabilistic bound ever holds
    )
    upper, certain = found.upper(torch.tensor(1e-3))
    assert bool(certain)
    assert float(found.top[0].sqrt()) <= float(SEEN.max()) * (1 + 1e-12)
    assert unseen <= float(upper) <= float(frobenius) * (1 + 1e-12)


def test_a_certain_bound_is_narrow_where_all_was_seen() -> None:
    a, b = lanczos(SEEN.square(), 3)
    found = Tridiagonal(
        a[None],
        b[None],
        steps=torch.tensor([3]),
        frobenius=SEEN.norm()[None],
        allowance=torch.tensor([1e-12], dtype=torch.float64),
        below=torch.tensor([1e-12], dtype=torch.float64),
        log_target=torch.tensor([1e9], dtype=torch.float64),
    )
    upper, certain = found.upper(torch.tensor(1e-3))
    assert bool(certain)
    assert float(SEEN.max()) <= float(upper) <= 1.05 * float(SEEN.max())


def test_what_rounding_takes_from_the_lower_bound_is_part_of_the_width() -> None:
    """Bounds that meet within 1 % do so no longer where the lower one may be 2 % too high."""
    a, b = lanczos(SEEN.square(), 3)
    one = torch.ones(1, dtype=torch.float64)
    for below, inside in ((1e-12, True), (0.02 * float(SEEN.max()), False)):
        found = Tridiagonal(
            a[None],
            b[None],
            steps=torch.tensor([3]),
            frobenius=SEEN.norm()[None],
            allowance=1e-12 * one,
            below=below * one,
            log_target=-1e9 * one,
        )
        assert found.within(0.01 * one, least=0.0)[0].tolist() == [inside]


@pytest.mark.parametrize("target", np.linspace(3, 9, 20))
def test_the_likely_bound_lies_where_its_polynomial_does(target: float) -> None:
    """Two rounds of trial values find t - theta, where log p_k (t) is what is asked, to 1 % of it:
    docs/math.md, (12)."""
    a, b = lanczos(SEEN.square(), 2)
    theta = np.linalg.eigvalsh([[a[0], b[0]], [b[0], a[1]]])

    def growth(log_distance: float) -> float:
        t = theta[-1] + np.exp(log_distance)
        return float(np.log(t - theta).sum() - np.log(b.numpy()).sum() - target)

    expected = np.exp(brentq(growth, -30, 30))
    found = Tridiagonal(
        a[None],
        b[None],
        steps=torch.tensor([2]),
        frobenius=torch.tensor([1e3], dtype=torch.float64),
        allowance=torch.zeros(1, dtype=torch.float64),
        below=torch.zeros(1, dtype=torch.float64),
        log_target=torch.tensor([target], dtype=torch.float64),
    )
    upper, certain = found.upper(torch.tensor(1e-3))
    assert not bool(certain)
    assert 1 <= (float(upper) ** 2 - theta[-1]) / expected <= 1.01


def test_bounds_that_are_called_near_enough_are_it_with_their_allowance() -> None:
    a, b = lanczos(SEEN.square(), 3)
    allowance = 1e-2
    found = Tridiagonal(
        a[None],
        b[None],
        steps=torch.tensor([3]),
        frobenius=torch.tensor([1e3], dtype=torch.float64),
        allowance=torch.tensor([allowance], dtype=torch.float64),
        below=torch.zeros(1, dtype=torch.float64),
        log_target=torch.tensor([0.5], dtype=torch.float64),
    )
    theta = float(found.top[0].sqrt())
    seen = set()
    for room in torch.linspace(2.1 * allowance, 20 * allowance, 100, dtype=torch.float64):
        enough = bool(found.within(room[None] / theta, least=0.0)[0])
        upper, _ = found.upper(room[None] / theta)
        seen.add(enough)
        assert enough == (float(upper) - theta <= float(room) * 1.01), float(room)
    assert seen == {False, True}
