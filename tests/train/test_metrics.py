"""GLUE's metrics for a whole pack, against scikit-learn and scipy on one trial at a time."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from rankscope.study.task import TASKS
from rankscope.train.metrics import score


@pytest.mark.parametrize("task", [task for task in TASKS if task != "STS-B"])
def test_classification(task: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, TASKS[task].num_labels, generator=generator)
    labels = torch.randint(TASKS[task].num_labels, (50,), generator=generator)
    for k, found in enumerate(score(logits, labels, TASKS[task])):
        guess = logits[k].argmax(-1)
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, guess))
        assert TASKS[task].metric in found
        if "f1" in found:
            assert found["f1"] == pytest.approx(sk.f1_score(labels, guess))
        if "matthews_correlation" in found:
            assert found["matthews_correlation"] == pytest.approx(sk.matthews_corrcoef(labels, guess))


def test_regression_and_a_constant_guess() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 50, 1, generator=generator), torch.randn(50, generator=generator)
    logits[1] = 1.0
    good, constant = score(logits, labels, TASKS["STS-B"])
    assert good["pearson"] == pytest.approx(stats.pearsonr(logits[0, :, 0], labels)[0], rel=1e-5)
    assert good["spearman"] == pytest.approx(stats.spearmanr(logits[0, :, 0], labels)[0])
    assert math.isnan(constant["pearson"])  # undefined, and never the best


def test_one_class_guessed_is_no_correlation() -> None:
    (found,) = score(torch.tensor([[[1.0, 0.0]] * 4]), torch.tensor([0, 1, 0, 1]), TASKS["CoLA"])
    assert found == {"accuracy": 0.5, "matthews_correlation": 0.0}
