"""GLUE's metrics for a whole pack, against scikit-learn and scipy on one trial at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from rankscope.study.tasks import TASKS, Task
from rankscope.train.metrics import constant_score, deviation, flattened, is_constant, score


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
            assert found["matthews_correlation"] == pytest.approx(
                sk.matthews_corrcoef(labels, guess)
            )


def test_regression_and_a_constant_guess() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(2, 50, 1, generator=generator),
        torch.randn(50, generator=generator),
    )
    logits[1] = 1.0
    good, constant = score(logits, labels, TASKS["STS-B"])
    assert good["pearson"] == pytest.approx(stats.pearsonr(logits[0, :, 0], labels)[0], rel=1e-5)
    assert good["spearman"] == pytest.approx(stats.spearmanr(logits[0, :, 0], labels)[0])
    assert constant == {"pearson": 0.0, "spearman": 0.0}  # it says nothing about the rows
    logits[0, 3] = torch.nan
    assert math.isnan(score(logits, labels, TASKS["STS-B"])[0]["pearson"])


def test_one_class_guessed_is_no_correlation() -> None:
    (found,) = score(torch.tensor([[[1.0, 0.0]] * 4]), torch.tensor([0, 1, 0, 1]), TASKS["CoLA"])
    assert found == {"accuracy": 0.5, "matthews_correlation": 0.0}


def test_answers_that_differ_by_rounding_alone_are_one_answer() -> None:
    """A regression that has collapsed: without the check its Pearson correlation is one of the
    study's best."""
    generator = torch.Generator().manual_seed(0)
    labels = 5 * torch.rand(200, generator=generator)
    noise = torch.randn(200, generator=generator)
    logits = torch.stack([2.7 + 1e-5 * (0.15 * labels + noise), 2.7 + 1e-2 * labels, 2.7 + noise])[
        ..., None
    ]
    found = is_constant(logits, labels)
    assert found.tolist() == [True, False, False]
    raw, kept = (score(x, labels, TASKS["STS-B"]) for x in (logits, flattened(logits, found)))
    assert raw[0]["pearson"] > 0.1
    assert kept[0] == {"pearson": 0.0, "spearman": 0.0}
    assert kept[1:] == raw[1:]
    assert kept[1]["pearson"] == pytest.approx(1, abs=1e-4)
    measured = is_constant(logits, labels, rounding=torch.tensor([0.0, 0.0, 0.6]))
    assert measured.tolist() == [True, False, True]


def test_a_constant_answer_of_a_classifier_is_one_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 50)
    noise = torch.randn(100, 2, generator=generator)
    logits = torch.stack(
        [1e-6 * noise + torch.tensor([0.0, 1e-7]), 0.1 * noise, torch.full_like(noise, torch.nan)]
    )
    logits[0] += torch.arange(100)[:, None]  # a shift of all classes decides nothing
    found = is_constant(logits, labels)
    assert found.tolist() == [True, False, False]
    assert len(flattened(logits, found)[0].argmax(-1).unique()) == 1
    assert len(logits[0].double().argmax(-1).unique()) == 2


def test_deviation_is_over_rows_of_centred_logits() -> None:
    logits = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(1))
    centred = logits.double().numpy() - logits.double().numpy().mean(-1, keepdims=True)
    expected = (centred.std(1) ** 2).sum(-1) ** 0.5
    assert deviation(logits).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("task", ["CoLA", "SST-2", "MNLI", "STS-B"])
def test_the_metric_of_the_best_constant_answer(task: str) -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 0, 1, 1]) if task != "STS-B" else torch.linspace(0, 5, 8)
    constants = [torch.zeros(1, 8, 3 if task == "MNLI" else 2) for _ in range(2)]
    if task == "STS-B":
        found = [score(torch.full((1, 8, 1), 2.5), labels, TASKS[task])[0]["pearson"]]
    else:
        for cls, logits in enumerate(constants):
            logits[..., cls] = 1.0
        found = [score(logits, labels, TASKS[task])[0][TASKS[task].metric] for logits in constants]
    assert constant_score(labels, TASKS[task]) == max(found)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "matthews_correlation"])
@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_of_any_number_of_classes(metric: str, classes: int) -> None:
    """Macro F1 is over the classes that are there or guessed."""
    task = Task("mine", ("text",), classes, metric)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 60, classes, generator=generator)
    logits[1, :, 0] = -9  # there, and never guessed
    if classes > 2:
        logits[1, :, -1] = -9  # neither
    labels = torch.randint(classes - (classes > 2), (60,), generator=generator)  # or never there
    oracle = {
        "accuracy": sk.accuracy_score,
        "f1_macro": lambda truth, guess: np.mean(
            [
                sk.f1_score(truth == c, guess == c, zero_division=0.0)
                for c in {*truth.tolist(), *guess.tolist()}
            ]
        ),
        "matthews_correlation": sk.matthews_corrcoef,
    }[metric]
    for k, found in enumerate(score(logits, labels, task)):
        guess = logits[k].argmax(-1)
        assert found[metric] == pytest.approx(oracle(labels.numpy(), guess.numpy()))
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, guess))


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        ("f1", [0, 0, 0, 1]),  # always 1 has an F1, always 0 has none
        ("f1", [0, 1, 1, 1]),
        ("f1_macro", [0, 0, 0, 1]),
        ("f1_macro", [2, 2, 1, 0, 2]),
        ("accuracy", [2, 2, 1, 0, 2]),
        ("matthews_correlation", [2, 2, 1, 0, 2]),
    ],
)
def test_the_best_constant_answer_is_the_best_of_all_of_them(
    metric: str, labels: list[int]
) -> None:
    task, truth = Task("mine", ("text",), max(labels) + 1, metric), torch.tensor(labels)
    every = torch.eye(task.num_labels)[:, None].expand(-1, len(labels), -1)  # (C, N, C)
    expected = max(found[metric] for found in score(every, truth, task))
    assert constant_score(truth, task) == pytest.approx(expected)


@pytest.mark.parametrize("greater", [True, False])
def test_the_best_constant_answer_knows_which_way_an_own_metric_goes(greater: bool) -> None:
    """Three of four rows are of class 0: answering it everywhere is right, or wrong, most often."""

    def share(logits: np.ndarray, truth: np.ndarray) -> float:
        return float(((logits.argmax(1) == truth) == greater).mean())

    task = Task("own", ("text",), 2, "share", greater_is_better=greater, function=share)
    assert constant_score(torch.tensor([0, 0, 0, 1]), task) == (0.75 if greater else 0.25)
