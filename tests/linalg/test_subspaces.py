"""Subspaces against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import rankscope.linalg as la


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape))
    )


def rotated(angles: list[float]) -> tuple[Tensor, Tensor]:
    """Two bases in R^20 with the principal angles given, hidden by a rotation and mixed inside each
    subspace."""
    Q, k = torch.linalg.qr(draw(20, 20)).Q, len(angles)
    theta = torch.tensor(angles, dtype=torch.float64)
    U, V = Q[:, :k], Q[:, :k] * theta.cos() + Q[:, k : 2 * k] * theta.sin()
    return U @ draw(k, k, seed=1), V @ draw(k, k, seed=2)


@pytest.mark.parametrize(
    "angles", [[0.1, 0.7, 1.2], [0.0, 1e-9, 1e-4], [1e-12, 1.57, 1.5707], [1.0]]
)
def test_principal_angles_large_and_tiny(angles: list[float]) -> None:
    U, V = rotated(angles)
    found = la.principal_angles(U, V)
    assert_close(found, torch.tensor(angles, dtype=torch.float64), rtol=1e-6, atol=1e-12)
    assert_close(la.principal_angles(V, U), found, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_principal_angles_of_two_updates(side: str) -> None:
    B, A, C = draw(3, 30, 4), draw(3, 4, 25), draw(3, 30, 4, seed=7)
    one, two = la.LowRank(B=B, A=A), la.LowRank(B=C, A=A)
    angles = la.principal_angles(one, two, k=4, side=side)
    if side == "right":
        assert float(angles.max()) < 1e-7
    else:
        assert_close(angles, la.principal_angles(B, C), rtol=1e-8, atol=1e-10)


def test_captured_energy_is_its_definition() -> None:
    R, B, A = draw(30, 25), draw(30, 6), draw(6, 25)
    U, _, Vh = torch.linalg.svd(B @ A)
    U, V = U[:, :3], Vh[:3].mT
    expected = float(
        torch.linalg.matrix_norm(U @ U.mT @ R @ V @ V.mT) ** 2 / torch.linalg.matrix_norm(R) ** 2
    )
    assert la.captured_energy(la.LowRank(B=B, A=A), R, 3) == pytest.approx(expected, rel=1e-10)
    assert la.captured_energy(B @ A, R, 3) == pytest.approx(expected, rel=1e-10)
    assert la.captured_energy(R, R, 25) == pytest.approx(1.0, rel=1e-12)
    batch = la.captured_energy(la.LowRank(B=torch.stack([B, B]), A=A), torch.stack([R, 2 * R]), 3)
    assert batch.tolist() == pytest.approx([expected] * 2, rel=1e-10)
    assert la.captured_energy(B @ A, torch.zeros(30, 25), 3) != la.captured_energy(
        B @ A, R, 3
    )  # NaN


@pytest.mark.parametrize("shape", [(40, 40), (40, 25), (25, 40)])
def test_intruders_are_counted(shape: tuple[int, int]) -> None:
    m, n = shape
    U, V = torch.linalg.qr(draw(m, m)).Q, torch.linalg.qr(draw(n, n, seed=1)).Q
    k = min(m, n)
    W = U[:, :k] * torch.linspace(1, 0.1, k).double() @ V[:, :k].mT
    assert la.intruder_dimensions(W, torch.zeros_like(W)) == 0
    # cosine 1 / sqrt(k) with every left singular vector
    mixed = U[:, :k].sum(1, keepdim=True) / k**0.5
    strong = la.LowRank(B=20 * mixed, A=draw(1, n, seed=2))
    assert la.intruder_dimensions(W, strong, k=1) == 1
    aligned = la.LowRank(B=20 * U[:, :1], A=V[:, :1].mT)
    assert la.intruder_dimensions(W, aligned) == 0
    both = la.LowRank(
        B=torch.stack([20 * mixed, 20 * U[:, :1]]), A=torch.stack([draw(1, n, seed=2), V[:, :1].mT])
    )
    assert la.intruder_dimensions(W, both, k=1).tolist() == [1, 0]
