"""The cost of a trial, counted from shapes, against torch's own count of what a step executes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankscope.study.cost import Rows, operations
from rankscope.study.folder import TrialFolder
from rankscope.study.plan import Study, Trial
from rankscope.study.tasks import TASKS
from rankscope.sweep import Inputs
from rankscope.train.adapters import AdapterPack
from rankscope.train.full import FullPack
from rankscope.train.loop import Run


@pytest.fixture(scope="module")
def inputs(tiny_models: dict[str, str], tiny_data: Path) -> Inputs:
    return Inputs(
        Study.parse(
            f"""
            name = "t"
            [scientific]
            model = "{tiny_models["roberta"]}"
            task = "CoLA"
            rank = [1, "d"]
            [nuisance]
            learning_rate = 1e-3
            [fixed]
            data = "{tiny_data}"
            batch_size = 8
            steps = 1
            """
        )
    )


def executed(trial: Trial, inputs: Inputs) -> int:
    """Operations of one step and one validation, as torch counts them."""
    kind = FullPack if trial.method == "full" else AdapterPack
    pack = kind([trial], model=inputs.model_path(trial.model), task=TASKS["CoLA"], device=torch.device("cpu"))
    train, validation = inputs.encoded(trial)
    run = Run(pack, [TrialFolder(Path())], TASKS["CoLA"], train, validation)
    rows = train.lengths.argsort()[-8:]  # of nearly equal length, so that padding does not blur the count
    with FlopCounterMode(display=False) as counter:
        run.step(rows, 1)
    return counter.get_total_flops()


@pytest.mark.parametrize("which", [0, 1, 2], ids=["r = 1", "r = d", "full"])
def test_operations_of_a_step(inputs: Inputs, which: int) -> None:
    trial = inputs.trials[which]
    train, _ = inputs.encoded(trial)
    tokens = float(train.lengths.sort().values[-8:].double().mean())
    counted = operations(trial, inputs.shape(trial), Rows(train=8, validation=0, tokens=tokens))
    assert counted == pytest.approx(executed(trial, inputs), rel=0.15)
