"""Warnings at a level of the drift or of rho: when they come, what they say, that they end
training."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from rankscope.measurement.callback import StableRankCallback
from tiny import roberta

ROOT = Path(__file__).resolve().parents[2]
DATA = [{"input_ids": torch.arange(6) + i, "labels": torch.tensor(i % 2)} for i in range(16)]


def train(callback: StableRankCallback, folder: Path) -> list[Any]:
    """The log history of 8 steps of a LoRA."""
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["query", "value"], r=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(roberta(), config)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=8, per_device_train_batch_size=2, learning_rate=1e-2,
        logging_steps=4, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=DATA)
    callback.attach(trainer)
    trainer.train()
    return trainer.state.log_history


def values(history: list[Any], quantity: str) -> dict[int, float]:
    name = f"stable_rank/{quantity}"
    return {log["step"]: log[name] for log in history if name in log}


@pytest.mark.parametrize("quantity", ["drift", "rho"])
def test_the_first_measurement_above_the_level_warns_and_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, quantity: str
) -> None:
    free = train(StableRankCallback(every=2), tmp_path / "free")
    found = values(free, quantity)
    assert sorted(found) == [2, 4, 6, 8]
    sizes = [abs(found[step]) for step in sorted(found)]
    assert sizes == sorted(sizes)
    level = (sizes[1] + sizes[2]) / 2  # passed at step 6
    with caplog.at_level(logging.WARNING, logger="rankscope"):
        callback = StableRankCallback(every=2, warn={quantity: level}, stop=True)
        stopped = train(callback, tmp_path / "stopped")
        assert sorted(values(stopped, quantity)) == [2, 4, 6]
        assert f"step 6: the median {quantity} is {found[6]:.3g}, past the level" in caplog.text
        assert "training stops here" in caplog.text
        caplog.clear()
        callback = StableRankCallback(every=2, warn={quantity: level})
        warned = train(callback, tmp_path / "warned")
    assert values(warned, quantity) == found  # training itself goes on as it would
    assert caplog.text.count("past the level") == 1


def test_a_level_that_is_not_passed_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = StableRankCallback(every=4, warn={"drift": 50, "rho": 1e6}, stop=True)
    with caplog.at_level(logging.WARNING, logger="rankscope"):
        history = train(callback, tmp_path)
    assert sorted(values(history, "drift")) == [4, 8]
    assert "level" not in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"warn": {"loss": 1.0}},
        {"warn": {"drift": 0}},
        {"warn": {"rho": -1.0}},
        {"warn": {"rho": math.nan}},
        {"warn": {"drift": "0.1"}},
        {"stop": True},
    ],
)
def test_what_is_no_level(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"StableRankCallback: expected warn"):
        StableRankCallback(**settings)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = ROOT / "benchmarks" / "early_warning.py"
    spec = importlib.util.spec_from_file_location("early_warning", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_that_the_script_prints(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    page = (ROOT / "docs" / "results" / "early-warning" / "README.md").read_text()
    assert len(tables) == 3
    for table in tables:
        assert table in page


def trial(module: ModuleType, peak: float, at: int, lost_at: float = math.inf) -> Any:
    """A drift that is 0, then ``peak`` from step ``at`` on; 100 steps."""
    steps = np.array([0, 25, 50, 75, 100])
    signal = (steps, np.where(steps >= at, peak, 0.0))
    return module.Trial("t", "T", 0, 1e-3, 100, {"drift": signal}, True, lost_at, 0.0, 0.0)


def test_levels_false_alarms_and_leads_of_known_trials(benchmark: ModuleType) -> None:
    healthy = [trial(benchmark, peak, 50) for peak in np.arange(1, 11) / 10]
    assert benchmark.chosen_level(healthy, "drift") == pytest.approx(0.9)  # one of ten is above
    losing = [
        trial(benchmark, 2.0, 25, lost_at=75),  # half of the training ahead
        trial(benchmark, 2.0, 75, lost_at=75),  # when the loss shows: too late
        trial(benchmark, 0.5, 25, lost_at=75),  # never
    ]
    cells = benchmark.judged([*healthy, *losing], "drift", 0.9)
    assert cells.split(" | ")[0].startswith("1 of 10: 10% [2, 40]")  # Wilson, by hand
    assert cells.split(" | ")[1].startswith("1 of 3: 33%")
    assert cells.split(" | ")[2] == "50%"
    assert benchmark.area([3.0, 4.0], [1.0, 3.0]).startswith("0.88")  # 3.5 of 4 pairs


def test_layers_with_wide_bounds_are_nan_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = StableRankCallback(every=4, rtol=1e-16, per_layer=True)
    with caplog.at_level(logging.WARNING, logger="rankscope"):
        history = train(callback, tmp_path)
    logs = [log for log in history if "stable_rank/unmet" in log]
    assert [log["step"] for log in logs] == [4, 8]
    for log in logs:
        layers = [value for name, value in log.items() if name.startswith("stable_rank/dW/")]
        assert sum(map(math.isnan, layers)) == log["stable_rank/unmet"] > 0
    assert caplog.text.count("wider than rtol = 1e-16") >= 1
    assert caplog.text.count("wider than rtol = 1e-16") <= 2  # the same count is said once
