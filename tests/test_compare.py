"""LoRA against full fine-tuning: on updates whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from rankscope.compare import Update, against
from rankscope.linalg import Dense, LowRank


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_an_update_against_itself() -> None:
    B, A = draw(12, 3), draw(3, 9)
    found = against(Update(LowRank(B=B, A=A, scale=2.0)), Update(Dense(2.0 * B @ A)))
    assert found["k"] == 3
    for name in ("captured_energy", "cosine", "left_overlap", "right_overlap", "norm_ratio"):
        assert found[name] == pytest.approx(1.0)
    assert found["relative_distance"] == pytest.approx(0.0, abs=1e-12)


def test_updates_that_share_nothing() -> None:
    U, V = torch.eye(8, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    lora = Update(LowRank(B=U[:, :2], A=V[:2]))
    full = Update(Dense(3 * U[:, 2:4] @ V[2:4]))
    found = against(lora, full)
    for name in ("captured_energy", "cosine", "left_overlap", "right_overlap"):
        assert found[name] == pytest.approx(0.0)
    assert found["relative_distance"] == pytest.approx(math.sqrt(2 + 18) / math.sqrt(18))
    assert found["norm_ratio"] == pytest.approx(1 / 3)


def test_captured_energy_needs_both_sides() -> None:
    """The same left directions with other right ones capture nothing."""
    U, V = torch.eye(8, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    found = against(Update(LowRank(B=U[:, :2], A=V[:2])), Update(Dense(U[:, :2] @ V[2:4])))
    assert found["left_overlap"] == pytest.approx(1.0)
    assert found["captured_energy"] == pytest.approx(0.0)


def test_a_zero_update_has_no_number() -> None:
    found = against(Update(LowRank(B=torch.zeros(5, 1), A=torch.ones(1, 4))), Update(Dense(torch.ones(5, 4))))
    assert found["k"] == 0
    assert math.isnan(found["cosine"])
