"""LoRA against full fine-tuning: on updates whose answer is known."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from rankscope.linalg import Dense, LowRank
from rankscope.sweep.compare import Update, against, comparisons

W = torch.ones(8, 6, dtype=torch.float64)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )


def test_an_update_against_itself() -> None:
    B, A = draw(12, 3), draw(3, 9)
    found = against(
        Update(LowRank(B=B, A=A, scale=2.0)), Update(Dense(2.0 * B @ A)), W=torch.ones(12, 9)
    )
    assert found["k"] == 3
    for name in ("captured_energy", "cosine", "left_overlap", "right_overlap", "norm_ratio"):
        assert found[name] == pytest.approx(1.0)
    for name in ("relative_distance", "weight_distance", "left_angle_last", "right_angle_last"):
        assert found[name] == pytest.approx(0.0, abs=1e-12 if "distance" in name else 1e-6)


def test_updates_that_share_nothing() -> None:
    U, V = torch.eye(8, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    lora = Update(LowRank(B=U[:, :2], A=V[:2]))
    full = Update(Dense(3 * U[:, 2:4] @ V[2:4]))
    found = against(lora, full, W=W)
    for name in ("captured_energy", "cosine", "left_overlap", "right_overlap"):
        assert found[name] == pytest.approx(0.0)
    assert found["relative_distance"] == pytest.approx(math.sqrt(2 + 18) / math.sqrt(18))
    assert found["norm_ratio"] == pytest.approx(1 / 3)
    assert [
        found[f"{side}_angle_{end}"] for side in ("left", "right") for end in ("first", "last")
    ] == [pytest.approx(90.0)] * 4
    tuned = (W + full.dense).norm()
    assert found["weight_distance"] == pytest.approx(math.sqrt(2 + 18) / float(tuned))


def test_captured_energy_needs_both_sides() -> None:
    """The same left directions with other right ones capture nothing."""
    U, V = torch.eye(8, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    found = against(Update(LowRank(B=U[:, :2], A=V[:2])), Update(Dense(U[:, :2] @ V[2:4])), W=W)
    assert found["left_overlap"] == pytest.approx(1.0)
    assert found["captured_energy"] == pytest.approx(0.0)


def test_a_zero_update_has_no_number() -> None:
    zero = Update(LowRank(B=torch.zeros(5, 1), A=torch.ones(1, 4)))
    found = against(zero, Update(Dense(torch.ones(5, 4))), W=torch.ones(5, 4))
    assert found["k"] == 0
    assert math.isnan(found["cosine"])


def test_a_longer_trial_is_no_reference() -> None:
    """Only trials with the study's own budget are compared: here there is no full
    fine-tune left to compare with."""

    class Kept:
        def trials(self) -> pd.DataFrame:
            return pd.DataFrame(
                {
                    "trial": ["a", "b"], "model": "m", "task": "RTE", "method": ["lora", "full"],
                    "rank": [4, None],
                    "scaling": ["alpha/r", None], "learning_rate": 1e-3, "seed": 0,
                    "status": "done", "metric": "accuracy",
                    "best": 0.7, "budget": [1.0, 2.0],
                }
            )  # fmt: skip

    assert comparisons(Kept()) == []  # type: ignore[arg-type]
