"""Metrics of many answers under many sets of row weights at once, as a bootstrap over rows needs
them.

Each takes answers (V, N), labels (N,) and weights (R, N) and gives (V, R). Letters: V
variants, N rows, R resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _accuracy(answers: Array, labels: Array, weights: Array) -> Array:
    return (answers == labels) @ weights.T / weights.sum(axis=1)


def _matthews(answers: Array, labels: Array, weights: Array) -> Array:
    """Gorodkin's R_K, which is Matthews' coefficient for two classes; 0 for a constant answer."""
    shares = weights / weights.sum(axis=1, keepdims=True)
    right = (answers == labels) @ shares.T
    both = said_twice = np.zeros_like(right)
    true_twice = np.zeros(len(weights))
    for one in np.unique(np.concatenate([labels, answers.ravel()])):
        said, true = (answers == one) @ shares.T, shares @ (labels == one)
        both, said_twice, true_twice = (
            both + said * true,
            said_twice + said**2,
            true_twice + true**2,
        )
    spread = (1 - said_twice) * (1 - true_twice)
    return np.where(spread > 1e-12, (right - both) / np.sqrt(np.maximum(spread, 1e-12)), 0.0)


def _pearson(answers: Array, labels: Array, weights: Array) -> Array:
    """0 for a constant answer."""
    shares = weights / weights.sum(axis=1, keepdims=True)
    mean, true = answers @ shares.T, shares @ labels
    variance = np.square(answers) @ shares.T - mean**2
    spread = variance * (shares @ labels**2 - true**2)
    least = 1e-12 * (np.square(answers) @ shares.T) * (shares @ labels**2)
    covariance = (answers * labels) @ shares.T - mean * true
    return np.where(spread > least, covariance / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


METRICS = {"accuracy": _accuracy, "matthews_correlation": _matthews, "pearson": _pearson}
