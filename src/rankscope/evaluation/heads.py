"""Refits a head on training rows: do the model's features still separate the classes?

Letters: F training rows, N validation rows, d width of the pooled features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rankscope.study.tasks import Task
from rankscope.train.metrics import score

C = 0.05  # penalty of the logistic regression on standardised features: few rows, many features
ALPHAS = np.logspace(-1, 5, 13)  # ridge penalties, chosen by leave-one-out
STEPS = 5000  # most iterations of the solver

Array = NDArray[np.float64]


def refitted(
    fitted_on: Array, labels: NDArray[Any], features: Array, truth: NDArray[Any], task: Task
) -> tuple[NDArray[Any], float]:
    """Logistic regression (ridge for a regression) of ``labels`` (F,) on ``fitted_on`` (F, d), each
    feature scaled to variance 1. -> answers on ``features`` (N, d), and the task's metric there.

    NaN answers and metric if a feature is not finite.
    """
    if not (np.isfinite(fitted_on).all() and np.isfinite(features).all()):
        return np.full(len(features), np.nan), float("nan")
    if task.num_labels == 1:
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS))
        answers = model.fit(fitted_on, labels).predict(features)
        logits = torch.from_numpy(np.ascontiguousarray(answers))[None, :, None]
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=STEPS))
        answers = model.fit(fitted_on, labels).predict(features)
        logits = torch.nn.functional.one_hot(
            torch.from_numpy(answers).long(), task.num_labels
        ).double()[None]
    (found,) = score(logits, torch.from_numpy(truth), task)
    return answers, found[task.metric]
