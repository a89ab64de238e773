"""What a pack's spectra record: values that are known, of the scale that the trial has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankscope.linalg import Dense, LowRank
from rankscope.train.adapters import AdapterPack
from rankscope.train.spectra import Recorder, Updates
from training import TASK, encoded, run_of, trials_of


class Pack:
    """Two sites, one trial: one update nearly cancels W, so that rounding leaves no digit of W +
    dW."""

    trials: list[Any]

    def __init__(self) -> None:
        self.trials = [None]

    def updates(self) -> Iterable[Updates]:
        source = torch.Generator().manual_seed(0)
        B, A = torch.randn(2, 1, 9, 2, generator=source), torch.randn(2, 1, 2, 7, generator=source)
        W = (B.double() @ A.double())[:, 0]
        W += (
            torch.tensor([1e-13, 1.0])[:, None, None]
            * torch.randn(2, 9, 7, generator=source).double()
        )
        dW = LowRank(B=B.double(), A=A.double(), scale=-1.0)
        yield Updates(["cancels", "stands"], slice(0, 1), W, dW, Dense(W[:, None]) + dW)


def test_a_value_whose_bounds_lie_too_far_apart_is_not_recorded() -> None:
    recorder = Recorder(Pack())
    recorder.record(1, alive=torch.tensor([True]))
    frame = recorder.frame(0).set_index(["matrix", "layer"])
    known = frame["stable_rank"].notna()
    assert known.to_dict() == {
        ("dW", "cancels"): True,
        ("dW", "stands"): True,
        ("W+dW", "cancels"): False,
        ("W+dW", "stands"): True,
    }
    assert frame.loc[("W+dW", "cancels"), "upper"] > frame.loc[("W+dW", "cancels"), "lower"]


def test_spectra_take_the_scale_of_the_trial_not_its_rounding(tiny_models: dict[str, str]) -> None:
    trials = trials_of("roberta", tiny_models["roberta"], ranks="[3]", d=16)
    pack = AdapterPack(trials, model=tiny_models["roberta"], task=TASK, device=torch.device("cpu"))
    scales = [trial.scale for trial in pack.trials]
    assert any(s != float(torch.tensor(s)) for s in scales)  # float32 does not hold all of them
    for update in pack.updates():
        assert isinstance(update.dW, LowRank)
        assert update.dW.scale.expand(update.dW.batch_shape)[0].tolist() == scales[update.members]


def test_before_the_first_step_there_is_W_alone(
    tiny_models: dict[str, str], tiny_data: Path
) -> None:
    """For each trial and site: sr(W) by float64 SVD, dW = 0 without a stable rank, and W + dW =
    W."""
    model = tiny_models["roberta"]
    trials = trials_of("roberta", model, ranks="[1, 3]", d=16, steps=4)
    run = run_of(trials, model, encoded(model, tiny_data))
    next(iter(run.steps()))
    for k in range(len(trials)):
        frame = run.spectra.frame(k)
        start = frame[frame["step"].eq(0)].set_index(["matrix", "layer"])
        assert len(start) == 3 * 4  # query and value of two blocks
        for layer in start.loc["W"].index:
            W = dict(run.pack.model.named_modules())[layer].base.weight.double()
            sigma = torch.linalg.svdvals(W)
            for matrix in ("W", "W+dW"):
                row = start.loc[(matrix, layer)]
                assert row["stable_rank"] == pytest.approx(
                    float((sigma / sigma[0]).square().sum()), rel=1e-3
                )
                assert row["frobenius_norm"] == pytest.approx(float(sigma.norm()), rel=1e-6)
            zero = start.loc[("dW", layer)]
            assert zero["frobenius_norm"] == 0
            assert zero[["stable_rank", "lower", "upper"]].isna().all()
