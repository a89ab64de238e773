"""The a priori bounds on rounding, term by term, against the formulas of docs/math.md in exact
arithmetic.

Rounding itself stays so far below them that no measurement can tell whether a term is there. So
each is made visible: a group that claims a norm or a magnitude far above its matrix's.

Letters: m rows, n columns, r rank.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import rankscope.linalg as la
from rankscope.linalg.certify import by_eigenvalues, certified_bound, largest_tau
from rankscope.linalg.frobenius import summation_error
from rankscope.linalg.scaled_group import ScaledGroup, normalized
from rankscope.linalg.sigma import SigmaOptions, _products_in, _room, by_svd

U = Fraction(1, 2**53)
M, N, R = 70, 50, 6


def gamma(k: int, u: Fraction = U) -> Fraction:
    return k * u / (1 - k * u)


def whole(m: int, n: int, seed: int = 0) -> Tensor:
    """(m, n) whole numbers from -3 to 3, float64: products and sums of them are exact."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (m, n), generator=source).double()


def claiming(*, magnitude: float | None = None, norm: float | None = None) -> ScaledGroup:
    """A group of one matrix of whole numbers, not rescaled, W + B A with r = 6, that claims
    another magnitude or norm."""
    op = la.Dense(whole(M, N)[None]) + la.LowRank(
        B=whole(M, R, 1)[None] / 8, A=whole(R, N, 2)[None] / 8
    )
    group, size = normalized(op)
    assert float(size) == 1
    for name, x in (("magnitude", magnitude), ("norm", norm)):
        if x is not None:
            group = replace(group, **{name: torch.tensor([x], dtype=torch.float64)})
    return group


def near(found: float, expected: Fraction) -> bool:
    return found == pytest.approx(float(expected), rel=2e-3, abs=0)


def root(x: Fraction, about: float) -> Fraction:
    """sqrt(x) to 100 bits and more, from a float64 guess."""
    y = Fraction(about)
    for _ in range(3):
        y = (y + x / y) / 2
        y = Fraction(round(y * 2**160), 2**160)
    return y


def exact(x: Tensor) -> Fraction:
    return Fraction(float(x))


def test_forming_the_rows() -> None:
    group = claiming()
    assert near(float(group.formation / group.magnitude), gamma(R + 1 + 8))
    square = exact(group.op.to_dense().square().sum())  # entries are multiples of 1 / 64: exact
    assert float(group.norm) == pytest.approx(float(square) ** 0.5, rel=1e-15)
    assert float(group.magnitude) >= float(group.norm)
    expected = gamma(R + 9) * exact(group.magnitude / group.norm) + gamma(M * N // 2 + M + 8)
    assert near(float(group.error), expected)
    group = claiming(magnitude=2.0**30, norm=2.0**20)
    expected = 2**20 * exact(group.error) + gamma(R + 9) * 2**30
    assert near(float(exact(group.frobenius) - 2**20), expected)


@pytest.mark.parametrize(
    ("shape", "terms"),
    [((10, 8), 40), ((300, 400), 2**15), ((2, 2**17), 2**16)],
    ids=["all at once", "chunks", "a long row"],
)
def test_sums_of_squares(shape: tuple[int, int], terms: int) -> None:
    """The sum of at most 2^16 squares or of one row, then of one number a row at most; half of
    it, since the norm is the root."""
    found = summation_error(la.Dense(torch.ones(shape)))
    assert near(found, gamma(terms + shape[0] + 8))


@pytest.mark.parametrize(
    ("dtype", "u"), [(torch.float32, Fraction(1, 2**24)), (torch.float64, U)], ids=str
)
def test_what_rounding_may_add_to_an_upper_bound_by_lanczos(
    dtype: torch.dtype, u: Fraction
) -> None:
    """(13): products relative to the matrix as it is held, the forming of its rows to mag(M)."""
    group = claiming(magnitude=2.0**40)
    products = (2 * root(Fraction(M), M**0.5) + 1) * u * exact(group.reach)
    assert near(float(group.allowance(dtype)), products + gamma(R + 9) * 2**40)
    assert near(
        float(claiming().allowance(dtype)), products + gamma(R + 9) * exact(claiming().magnitude)
    )


def by_lanczos(group: ScaledGroup, steps: int = 60) -> tuple[Fraction, Fraction, Fraction]:
    g = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, _ = _products_in(torch.float64, group, SigmaOptions(1e-3), g, steps)
    return exact(found.value), exact(found.lower), exact(found.upper)


def test_what_rounding_takes_from_the_lower_bound_by_lanczos() -> None:
    value, lower, _ = by_lanczos(claiming(magnitude=2.0**30))
    assert near(float(value - lower), (gamma(M + N + 8) + gamma(R + 9)) * 2**30)


def test_an_upper_bound_by_lanczos_does_not_trust_the_last_digits_of_the_norm() -> None:
    """One step knows little: ||M||_F, and what it may be off by, is nearly all of the bound."""
    group = claiming(norm=0.9 * float(claiming().norm))
    group = replace(group, error=torch.tensor([0.12], dtype=torch.float64))
    _, _, upper = by_lanczos(group, steps=1)
    assert exact(group.norm) * Fraction(110, 100) < upper <= exact(group.norm) * Fraction(113, 100)


@pytest.mark.parametrize("norm", [None, 2.0**27])
@pytest.mark.parametrize("magnitude", [None, 2.0**30])
def test_the_proof_by_cholesky(norm: float | None, magnitude: float | None) -> None:
    """(17); tau is a whole number and M^T M exact, so the trace is, too."""
    group = claiming(norm=norm, magnitude=magnitude)
    tau = 4096.0
    trace = N * Fraction(tau) ** 2 - exact(group.op.to_dense().square().sum())
    form, F = exact(group.formation), exact(group.frobenius)
    square = Fraction(tau) ** 2 + gamma(N + 2) * trace + gamma(M + 2) * F**2
    bound = certified_bound(group, torch.tensor([tau], dtype=torch.float64))
    excess = exact(bound) - Fraction(tau)
    assert near(float(excess), root(square, tau) + form - Fraction(tau))


def test_the_largest_tau_proves_what_is_asked_and_hardly_less() -> None:
    for group in (claiming(), claiming(norm=2.0**20, magnitude=2.0**36)):
        upper = torch.tensor([3000.0], dtype=torch.float64)
        tau = largest_tau(group, upper)
        proved = certified_bound(group, tau)
        assert upper * (1 - 1e-13) <= proved <= upper
        assert tau < upper


@pytest.mark.parametrize("norm", [None, 2.0**24])
@pytest.mark.parametrize("magnitude", [None, 2.0**32])
def test_eigenvalues(norm: float | None, magnitude: float | None) -> None:
    """(17b)."""
    group = claiming(norm=norm, magnitude=magnitude)
    value, lower, upper = (exact(x) for x in by_eigenvalues(group))
    trace = exact(group.op.to_dense().square().sum())
    error = gamma(8 * N) * trace + gamma(M + 2) * exact(group.frobenius) ** 2
    form = exact(group.formation)
    above = root(value**2 + error, float(value)) + form
    below = root(value**2 - error, float(value)) - form
    assert near(float(upper - value), above - value)
    assert near(float(value - lower), value - below)


def test_singular_values() -> None:
    group = claiming(norm=2.0**20, magnitude=2.0**30)
    _, width = by_svd(group)
    expected = exact(group.formation) + gamma(8 * (M + N)) * exact(group.frobenius)
    assert near(float(width), expected)


@pytest.mark.parametrize("power", [-40, 0, 40])
def test_the_magnitude_is_that_of_what_is_multiplied(power: int) -> None:
    """It is computed once, before the power of two is taken out."""
    size = torch.tensor(2.0**power)
    A = whole(3, N, 3)
    op = la.Dense(size * whole(M, N, 1)) + la.LowRank(B=size * whole(M, 3, 2), A=A)
    group, taken = normalized(op.select(torch.tensor([0]), torch.Size()))
    assert (float(taken) == 1) == (power == 0)
    torch.testing.assert_close(group.magnitude, group.op.magnitude(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("apart", [0, 2.0**-30])
def test_factors(apart: float) -> None:
    """(8): both bounds, of sigma_1 and of ||M||_F, relative to |s| ||B|| ||A||, which is far
    above the product where columns cancel."""
    b, a, c = whole(M, 1, 3), whole(1, N, 4), whole(M, 1, 5)
    B = torch.cat([b, b + apart * c], dim=1)  # exact: whole multiples of 2^-30
    A = torch.cat([a, -a if apart else a])
    op = la.LowRank(B=B, A=A, scale=0.75)
    magnitude = 0.75 * float(B.norm() * A.norm())
    rounding = gamma(4 * (M + N + 2)) * Fraction(magnitude)
    norm = la.spectral_norm(op)
    value = Fraction(float(norm.value))
    assert near(float(Fraction(float(norm.upper)) - value), rounding)
    assert near(float(value - Fraction(float(norm.lower))), rounding)
    rank = la.stable_rank(op)  # 1, and never less
    expected = ((value + rounding) / (value - rounding)) ** 2
    if apart:
        assert near(float(Fraction(float(rank.upper)) - 1), expected - 1)
    assert rank.lower == 1


def test_the_room_that_the_error_of_the_norm_leaves() -> None:
    group = replace(claiming(), error=torch.tensor([0.01], dtype=torch.float64))
    room = 1 + exact(_room(group, 0.2))
    assert near(float(room * Fraction(101, 99)), Fraction(12, 10))
    group = replace(group, error=torch.tensor([0.2], dtype=torch.float64))
    assert float(_room(group, 0.2)) == 0.1  # what is asked is out of reach in any case
