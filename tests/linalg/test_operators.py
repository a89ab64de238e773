"""Operators against the matrices that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import rankscope.linalg as la
from rankscope.linalg.frobenius import frobenius_squared, product


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    ).to(dtype)


def every_kind(m: int = 20, n: int = 30) -> dict[str, tuple[la.Operator, Tensor]]:
    W, B, A, d = draw(m, n), draw(m, 4), draw(4, n), draw(m)
    low = la.LowRank(B=B, A=A, scale=1.5)
    shared, Bs, As = draw(3, 1, m, n), draw(3, 2, m, 4), draw(3, 2, 4, n)
    return {
        "dense": (la.Dense(W), W),
        "low rank": (low, 1.5 * B @ A),
        "sum": (la.Dense(W) + low, W + 1.5 * B @ A),
        "difference": (la.Dense(W) - low, W - 1.5 * B @ A),
        "negative": (-low, -1.5 * B @ A),
        "rows scaled": (la.Scaled(la.Dense(W) + low, d), d[:, None] * (W + 1.5 * B @ A)),
        "columns scaled": (la.Scaled(low, d).mT, (d[:, None] * (1.5 * B @ A)).mT),
        "scaled minus dense": (la.Scaled(low, d) - la.Dense(W), d[:, None] * (1.5 * B @ A) - W),
        "dense plus scaled": (la.Dense(W) + la.Scaled(low, d), W + d[:, None] * (1.5 * B @ A)),
        "transposed plus": (
            la.Scaled(low, d).mT + la.Dense(W).mT,
            (d[:, None] * (1.5 * B @ A) + W).mT,
        ),
        "shared W": (la.Dense(shared) + la.LowRank(B=Bs, A=As), shared + Bs @ As),
        "one W, many updates": (la.Dense(W) + la.LowRank(B=Bs, A=As), W + Bs @ As),
    }


@pytest.mark.parametrize("kind", every_kind())
def test_an_operator_is_its_matrix(kind: str) -> None:
    op, M = every_kind()[kind]
    X = draw(M.shape[-1], 5)
    assert op.shape == M.shape
    assert_close(op.to_dense(), M)
    assert_close(op @ X, M @ X)
    assert_close(op @ X[:, 0], M @ X[:, 0])
    assert_close(op.mT.to_dense(), M.mT)
    assert_close(op.mT @ draw(M.shape[-2], 3), M.mT @ draw(M.shape[-2], 3))
    assert_close(op.rows(3, 11).to_dense(), M[..., 3:11, :])
    assert_close(op.cast(torch.float32).to_dense(), M, rtol=1e-5, atol=1e-5)
    assert_close(frobenius_squared(op), torch.linalg.matrix_norm(M) ** 2, rtol=1e-13, atol=0)
    assert_close(la.row_norms(op), torch.linalg.vector_norm(M, dim=-1))
    x = draw(*M.shape[:-2], M.shape[-1])
    assert_close(op.matvec(x), (M @ x[..., None])[..., 0])
    assert_close(product(op, x), (M @ x[..., None])[..., 0])
    y = draw(*M.shape[:-1])
    assert_close(product(op, y, transposed=True), (M.mT @ y[..., None])[..., 0])
    assert bool((op.magnitude() >= torch.linalg.matrix_norm(M) * (1 - 1e-12)).all())
    assert bool((2.0 ** op.exponent() > M.abs().amax((-2, -1))).all())


@pytest.mark.parametrize("kind", every_kind())
def test_its_spectrum_is_that_of_its_matrix(kind: str) -> None:
    op, M = every_kind()[kind]
    for certify in (False, True):
        found = la.spectral_norm(op, 1e-9, certify=certify)
        sigma = torch.linalg.matrix_norm(M, 2)
        assert_close(torch.as_tensor(found.value, dtype=torch.float64), sigma, rtol=1e-9, atol=0)
        assert bool(
            (torch.as_tensor(found.lower, dtype=torch.float64) <= sigma * (1 + 1e-13)).all()
        )
        assert bool(
            (torch.as_tensor(found.upper, dtype=torch.float64) >= sigma * (1 - 1e-13)).all()
        )


@pytest.mark.parametrize(
    "kind", ["sum", "shared W", "one W, many updates", "rows scaled", "transposed plus"]
)
def test_lanczos_on_operators(kind: str) -> None:
    op, M = every_kind(60, 70)[kind]
    found = la.stable_rank(op)
    assert found.method == "lanczos"
    sigma = torch.linalg.svdvals(M)
    sr = sigma.square().sum(-1) / sigma[..., 0] ** 2
    assert bool(
        (
            (torch.as_tensor(found.lower, dtype=torch.float64) <= sr)
            & (sr <= torch.as_tensor(found.upper, dtype=torch.float64))
        ).all()
    )


def test_frobenius_of_a_sum_is_the_formula() -> None:
    """||W + sBA||^2 = ||W||^2 + 2 s <W, BA> + s^2 ||BA||^2: docs/math.md, (5)."""
    W, B, A, s = draw(40, 50), draw(40, 6), draw(6, 50), 0.7
    formula = W.square().sum() + 2 * s * (W @ A.mT * B).sum() + s**2 * (B.mT @ B * (A @ A.mT)).sum()
    assert_close(
        frobenius_squared(la.Dense(W) + la.LowRank(B=B, A=A, scale=s)), formula, rtol=1e-13, atol=0
    )


def test_frobenius_survives_cancellation_where_the_formula_does_not() -> None:
    W, E = draw(30, 40), 1e-10 * draw(41, 40)[:30]
    U, S, Vh = torch.linalg.svd(W + E, full_matrices=False)
    op = la.Dense(W) - la.LowRank(B=U * S, A=Vh)
    true = torch.linalg.matrix_norm(E)
    B, A = U * S, Vh
    formula = W.square().sum() - 2 * (W @ A.mT * B).sum() + (B.mT @ B * (A @ A.mT)).sum()
    assert abs(formula.clamp(min=0).sqrt() / true - 1) > 1e-2  # the hazard
    assert_close(frobenius_squared(op).sqrt(), true, rtol=1e-4, atol=0)  # the cure


def test_dora() -> None:
    """W' = m / ||W + sBA||_row (W + sBA), protocol trap 5."""
    W, B, A, magnitude = draw(20, 30), draw(20, 4), draw(4, 30), draw(20).abs() + 1
    merged = la.Dense(W) + la.LowRank(B=B, A=A, scale=2.0)
    op = la.Scaled(merged, magnitude / la.row_norms(merged))
    V = W + 2 * B @ A
    assert_close(op.to_dense(), magnitude[:, None] * V / V.norm(dim=1, keepdim=True))


def test_products_keep_the_wider_dtype_and_share_memory() -> None:
    W = draw(6, 8, dtype=torch.bfloat16)
    op = la.Dense(W)
    assert (op @ draw(8, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert (op @ draw(8, 2)).dtype == torch.float64
    assert op.mT.W.data_ptr() == W.data_ptr()
    assert op.mT.mT.shape == op.shape


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: la.LowRank(B=draw(768, 8), A=draw(16, 768)), r"one r; got B \(768, 8\)"),
        (lambda: la.LowRank(B=draw(5, 2).int(), A=draw(2, 4)), "floating"),
        (lambda: la.LowRank(B=torch.empty(5, 0), A=torch.empty(0, 4)), "r >= 1"),
        (lambda: la.Dense(draw(5)), r"\(\*batch, m, n\)"),
        (lambda: la.Dense(torch.ones(3, 3, dtype=torch.long)), "floating"),
        (lambda: la.Dense(torch.empty(0, 3)), "entries"),
        (lambda: la.Dense(draw(4, 5)) + la.Dense(draw(5, 4)), "Conv1D"),
        (lambda: la.Scaled(la.Dense(draw(4, 5)), draw(5)), "one scale per row"),
        (lambda: la.stable_rank(draw(4, 5), rtol=0.0), "rtol"),
        (lambda: la.spectral_norm(draw(4, 5), rtol=1.0), "rtol"),
        (lambda: la.stable_rank(draw(4, 5), rtol=1.0), "rtol"),
        (lambda: la.stable_rank(draw(4, 5), confidence=1.0), "certify=True"),
        (lambda: la.singular_subspaces(draw(4, 5), 5), "k must lie in 1 .. 4"),
        (lambda: la.principal_angles(draw(4, 5), draw(4, 5), k=2, side="top"), "side"),
        (lambda: la.principal_angles(la.Dense(draw(4, 5)), draw(4, 5)), "k="),
        (lambda: la.intruder_dimensions(draw(4, 5) * torch.nan, draw(4, 5)), "finite"),
    ],
)
def test_mistakes_get_one_clear_line(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_factor_that_is_no_power_of_two_is_rounded_once() -> None:
    W = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert torch.equal(la.Dense(W).scaled(third).W, (W.double() * third).float())


@pytest.mark.parametrize("size", [2.0**-9, 2.0**9])
def test_the_magnitude_of_scaled_rows_bounds_their_norm(size: float) -> None:
    W = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    magnitude = float(la.Scaled(la.Dense(W), torch.full((30,), size)).magnitude())
    assert size * float(W.norm()) <= magnitude <= 1.1 * size * float(W.norm())
