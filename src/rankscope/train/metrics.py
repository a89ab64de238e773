"""The tasks' metrics, for all trials of a pack, and what rounding alone does to answers. Letters:
K trials, N rows, C classes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor, nn

from rankscope.study.tasks import REGRESSION, Task

SMALL = (
    1e-4  # of the labels' standard deviation, or nats: smaller differences of answers do not count
)
ROUNDED = 2  # answers must vary by so many times what rounding adds
WORTH = 256  # units in the last place: larger differences of answers are not rounding


def score(logits: Tensor, labels: Tensor, task: Task) -> list[dict[str, float]]:
    """All of the task's metrics, per trial.

    A constant answer has correlation 0: it says nothing about the rows. NaN where a logit is not
    finite.

    Args:
        logits: (K, N, C), C = 1 for regression.  labels: (N,).
    """
    truth = labels.numpy()
    if task.num_labels == 1:
        found = [_correlations(scores, truth) for scores in logits[..., 0].numpy()]
    else:
        known = [name for name in task.metrics if name in _OF_CLASSES]
        answers = logits.argmax(-1).numpy()
        found = [{name: _OF_CLASSES[name](truth, answer) for name in known} for answer in answers]
    if task.function is not None:
        for line, own in zip(found, logits.numpy(), strict=True):
            line[task.metric] = _own(task, own, truth)
    return found


def _own(task: Task, logits: np.ndarray, truth: np.ndarray) -> float:
    """The user's function of logits (N, C) and labels (N,). ``TypeError`` if it returns no
    number."""
    assert task.function is not None
    found = task.function(logits, truth)
    if not isinstance(found, int | float | np.number) or isinstance(found, bool):
        raise TypeError(f"metric {task.metric}: expected a number; it returned {found!r:.80}")
    return float(found)


_OF_CLASSES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda truth, answer: float((answer == truth).mean()),
    "f1": lambda truth, answer: float(f1_score(truth, answer, zero_division=0.0)),
    # over the classes that are there or guessed
    "f1_macro": lambda truth, answer: float(
        f1_score(truth, answer, average="macro", zero_division=0.0)
    ),
    "matthews_correlation": lambda truth, answer: float(matthews_corrcoef(truth, answer)),
}


def constant_score(labels: Tensor, task: Task) -> float:
    """The task's metric of the best constant answer; a correlation of 0."""
    if task.metric in (*REGRESSION, "matthews_correlation"):
        return 0.0
    if task.function is not None:
        return _best_constant(labels, task)
    classes, counts = labels.unique(return_counts=True)
    commonest = np.full(len(labels), int(classes[counts.argmax()]))
    answer = np.ones_like(commonest) if task.metric == "f1" else commonest
    return _OF_CLASSES[task.metric](labels.numpy(), answer)


def _best_constant(labels: Tensor, task: Task) -> float:
    """The user's metric of the best answer that is the same for all rows: each class, or the mean
    of the numbers. NaN where the function has no value for any."""
    N, C, truth = len(labels), task.num_labels, labels.numpy()
    if C == 1:
        rows = [np.full((N, 1), truth.mean(), dtype=np.float32)]
    else:
        rows = [np.eye(C, dtype=np.float32)[[c] * N] for c in np.unique(truth)]
    sign = 1 if task.greater_is_better else -1
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = [value for row in rows if np.isfinite(value := _own(task, row, truth))]
    return max(found, key=lambda value: sign * value, default=np.nan)


def unigram_entropy(labels: Tensor) -> float:
    """The loss (nats per token) of the best model that ignores the context: the entropy of the
    learnt tokens' frequencies. labels (N, T)"""
    targets = labels[:, 1:]
    counts = targets[targets != -100].unique(return_counts=True)[1].double()
    share = counts / counts.sum()
    return float(-(share * share.log()).sum())


def is_constant(logits: Tensor, labels: Tensor, *, rounding: Tensor | None = None) -> Tensor:
    """Whether a trial gives every row the same answer, up to rounding. (K, N, C), (N,) -> (K,) bool

    The answers of a collapsed model still differ by rounding, and a correlation, which ignores
    scale, would turn that into a number. So the answers are constant if their
    standard deviation over the rows is below ``ROUNDED`` times that which rounding alone gives it,
    or below ``SMALL`` of the labels' own (regression), or below ``SMALL`` nats (classification: of
    the logits, less their mean over the classes).

    Args:
        rounding: (K,) standard deviation of the answers due to rounding, as
            ``rounded_at_random`` measures it; None: 0.
    """
    spread = deviation(logits)
    unit = float(labels.double().std(correction=0)) if logits.shape[-1] == 1 else 1.0
    limit = torch.full_like(spread, SMALL * unit)
    if rounding is not None:
        limit = limit.maximum(ROUNDED * rounding.to(limit))
    return spread <= limit  # never where it is NaN


def flattened(logits: Tensor, constant: Tensor) -> Tensor:
    """The same, with the mean answer for every row where a trial's is ``constant`` (K,)."""
    return torch.where(constant[:, None, None], logits.mean(1, keepdim=True), logits)


def deviation(logits: Tensor) -> Tensor:
    """Standard deviation over the rows of what decides the answer: (K, N, C) -> (K,) float64"""
    answers = logits.double()
    if answers.shape[-1] > 1:
        answers = answers - answers.mean(-1, keepdim=True)
    return answers.var(1, correction=0).sum(-1).sqrt()


def _correlations(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    if scores.min() == scores.max():
        return {"pearson": 0.0, "spearman": 0.0}
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # of what is not finite: NaN
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return {
            "pearson": float(stats.pearsonr(scores, truth)[0]),
            "spearman": float(stats.spearmanr(scores, truth)[0]),
        }


@contextlib.contextmanager
def rounded_at_random(model: nn.Module, *, seed: int = 0) -> Iterator[None]:
    """Every layer without sublayers rounds at random while this is open: its output is moved by up
    to one unit in the last place.

    Monte Carlo arithmetic (D. S. Parker, UCLA CSD-970002, 1997): the difference from the
    undisturbed answers estimates what rounding does to them. On a real encoder it is 1 to 3 times
    the true error (against float64), in float32 and in bfloat16.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def move(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        device = output.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        u = (
            torch.rand(output.shape, generator=generator, dtype=output.dtype, device=device)
            .mul_(2)
            .sub_(1)
        )
        return output * u.mul_(torch.finfo(output.dtype).eps).add_(1)

    layers = [module for module in model.modules() if not [*module.children()]]
    handles = [layer.register_forward_hook(move) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def may_be_rounding(logits: Tensor, deviation: Tensor, *, bfloat16: bool) -> Tensor:
    """Whether it is worth measuring: answers that differ by a few units in the last place. -> (K,)
    bool

    Args:
        logits: (K, N, C), from products in bfloat16 or in the logits' own dtype.
        deviation: (K,) of the answers, over the rows.
    """
    unit = torch.finfo(torch.bfloat16 if bfloat16 else logits.dtype).eps
    return deviation <= WORTH * unit * logits.abs().amax((1, 2)).double()
