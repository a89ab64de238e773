"""The loss of a training batch, and each trial's metrics on the validation rows.

For classification and regression, metrics are computed from the predictions of all rows; for a
language model, from the loss of every learnt token. Letters: K trials, N validation rows, B batch,
C classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rankscope.study.tasks import Task
from rankscope.train.data import Encoded
from rankscope.train.language import learnt, token_losses
from rankscope.train.metrics import (
    constant_score,
    deviation,
    flattened,
    is_constant,
    may_be_rounding,
    rounded_at_random,
    score,
    unigram_entropy,
)
from rankscope.train.pack import Pack


class Run(Protocol):
    """What these functions need of a run (``train.run``)."""

    pack: Pack
    task: Task
    validation: Encoded
    choosing: Tensor
    held_out: Tensor
    device: torch.device
    mixed: bool
    K: int

    def logits(self, inputs: dict[str, Tensor]) -> Tensor: ...

    def batches(self, size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]: ...


HELD_OUT = "_held_out"  # ends the name of a metric on the rows that choose nothing


def losses_of(run: Run, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Each trial's mean loss over the rows of a batch, or over the tokens that are learnt in it.
    -> (K,)"""
    if not run.task.is_language:
        return loss(run.logits(inputs), labels.to(run.device))
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.mixed):
        return token_losses(run.pack, inputs, labels).mean(1)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of each trial: cross-entropy, or squared error for regression. (K, N, C), (N,) ->
    (K,)"""
    K, N, C = logits.shape
    if C == 1:
        return (logits[..., 0] - labels).square().mean(1)
    return (
        F.cross_entropy(logits.flatten(0, 1), labels.repeat(K), reduction="none").view(K, N).mean(1)
    )


def evaluate(run: Run) -> list[dict[str, float]]:
    """Per trial: ``eval_loss``, the task's metrics, and whether its answers are constant, on the
    rows that choose; metrics on other rows under names of their own."""
    run.pack.model.eval()
    return _of_text(run) if run.task.is_language else _of_answers(run)


def constant_metric(task: Task, validation: Encoded, rows: Tensor) -> float:
    """The metric of the best constant prediction on these rows."""
    if task.is_language:
        return unigram_entropy(validation.labels[rows])
    return constant_score(validation.labels[rows], task)


def _of_text(run: Run) -> list[dict[str, float]]:
    """The mean over all tokens that are learnt in the rows, whatever batches they were in."""
    validation, K = run.validation, len(run.pack.trials)
    sums = torch.zeros(K, len(validation), dtype=torch.float64)
    counts = torch.zeros(len(validation), dtype=torch.float64)
    for rows, inputs in run.batches(2 * run.pack.trials[0].batch_size):
        labels = validation.batch(rows)[1]
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.mixed):
            found = token_losses(run.pack, inputs, labels).cpu().double()  # (K, n)
        owners = rows[learnt(labels)[0]]  # (n,)
        sums.index_add_(1, owners, found)
        counts.index_add_(0, owners, torch.ones(len(owners), dtype=torch.float64))
    parts = [("", run.choosing)] + [(HELD_OUT, run.held_out)] * bool(len(run.held_out))
    lines: list[dict[str, float]] = [{} for _ in range(K)]
    for suffix, chosen in parts:
        means = sums[:, chosen].sum(1) / counts[chosen].sum()
        for line, mean in zip(lines, means.tolist(), strict=True):
            line |= {f"eval_loss{suffix}": mean, f"perplexity{suffix}": perplexity(mean)}
    return lines


def perplexity(mean: float) -> float:
    """exp of a loss in nats."""
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def _of_answers(run: Run) -> list[dict[str, float]]:
    task, labels = run.task, run.validation.labels
    found = torch.empty(run.K, len(labels), task.num_labels, dtype=run.pack.params[0].values.dtype)
    for rows, inputs in run.batches(2 * run.pack.trials[0].batch_size):
        found[:, rows] = run.logits(inputs).cpu()
    losses = loss(found[:, run.choosing], labels[run.choosing])
    constant = is_constant(found, labels, rounding=_rounding(run, found))
    found = flattened(found, constant)
    parts = [("", run.choosing)] + [(HELD_OUT, run.held_out)] * bool(len(run.held_out))
    if task.beside and run.validation.beside:
        first = len(labels) - run.validation.beside
        parts.append((task.beside.removeprefix("validation"), torch.arange(first, len(labels))))
    lines = [{"eval_loss": float(each)} for each in losses]
    for suffix, rows in parts:
        for line, scores in zip(lines, score(found[:, rows], labels[rows], task), strict=True):
            line |= {f"{name}{suffix}": value for name, value in scores.items()}
    return [line | {"is_constant": bool(c)} for line, c in zip(lines, constant, strict=True)]


def _rounding(run: Run, answers: Tensor) -> Tensor | None:
    """Standard deviation that rounding adds to the answers (K, N, C) of a batch, measured only if
    it may explain all their variation. -> (K,)"""
    if not may_be_rounding(answers, deviation(answers), bfloat16=run.mixed).any():
        return None
    # a training batch: random numbers beside every layer's output take its memory twice
    rows, inputs = next(run.batches(run.pack.trials[0].batch_size))
    with rounded_at_random(run.pack.model):
        return deviation(run.logits(inputs).cpu() - answers[:, rows])
