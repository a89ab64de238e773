"""GLUE's metrics, for all trials of a pack. Higher is better. Letters: K trials, N rows, C classes."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor

from rankscope.study.task import Task


def score(logits: Tensor, labels: Tensor, task: Task) -> list[dict[str, float]]:
    """The task's metric, and for the tasks that have one its second, per trial.

    Args:
        logits: (K, N, C), C = 1 for regression.  labels: (N,).
    """
    truth = labels.numpy()
    if task.num_labels == 1:
        return [_correlations(scores, truth) for scores in logits[..., 0].numpy()]
    found = []
    for guess in logits.argmax(-1).numpy():
        row = {"accuracy": float((guess == truth).mean())}
        if task.name in ("MRPC", "QQP"):
            row["f1"] = float(f1_score(truth, guess, zero_division=0.0))
        if task.metric == "matthews_correlation":
            row["matthews_correlation"] = float(matthews_corrcoef(truth, guess))
        found.append(row)
    return found


def _correlations(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # NaN is the right answer, and it is kept
        return {
            "pearson": float(stats.pearsonr(scores, truth)[0]),
            "spearman": float(stats.spearmanr(scores, truth)[0]),
        }
