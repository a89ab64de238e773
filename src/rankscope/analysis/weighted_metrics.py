"""Metrics of many answers under many sets of row weights at once, as a bootstrap over rows needs
them.

Each takes answers (V, N), labels (N,) and weights (R, N) and gives (V, R). They are those of
`rankscope.train.metrics`: the same edge cases, on repeated rows. Letters: V variants, N rows, R
resamples.
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


def _f1(answers: Array, labels: Array, weights: Array) -> Array:
    """F1 of class 1; 0 if it is neither present nor predicted."""
    return _f1_of(1, answers, labels, weights)[0]


def _f1_macro(answers: Array, labels: Array, weights: Array) -> Array:
    """Mean over the classes that are there or guessed."""
    classes = np.unique(np.concatenate([labels, answers.ravel()]))
    found = [_f1_of(one, answers, labels, weights) for one in classes]
    values, seen = (np.stack(part) for part in zip(*found, strict=True))
    return values.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)


def _f1_of(one: float, answers: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """F1 of one class, and whether it is there or guessed: (V, R) each."""
    said, true = (answers == one) @ weights.T, weights @ (labels == one)
    both = ((answers == one) & (labels == one)) @ weights.T
    return 2 * both / np.maximum(said + true, 1e-300), said + true > 0


def _spearman(answers: Array, labels: Array, weights: Array) -> Array:
    """Pearson's of the mid-ranks, which each resample has of its own; 0 for a constant answer."""
    of_labels = _midranks(labels, weights)
    found = np.empty((len(answers), len(weights)))
    shares = weights / weights.sum(axis=1, keepdims=True)
    for v, row in enumerate(answers):
        x, y = _midranks(row, weights), of_labels
        x, y = (z - (z * shares).sum(axis=1, keepdims=True) for z in (x, y))
        spread = np.sqrt((x * x * shares).sum(axis=1) * (y * y * shares).sum(axis=1))
        covariance = (x * y * shares).sum(axis=1)
        found[v] = np.where(spread > 1e-12, covariance / np.maximum(spread, 1e-300), 0.0)
    return found


def _midranks(values: Array, weights: Array) -> Array:
    """(N,) -> (R, N): the mean rank of each value among the rows, each repeated by its weight."""
    place = np.unique(values, return_inverse=True)[1]
    tied = np.zeros((place.max() + 1, weights.shape[1]))
    tied[place, np.arange(len(place))] = 1
    mass = weights @ tied.T  # (R, distinct values)
    middle = np.cumsum(mass, axis=1) - mass / 2
    return middle[:, place]


def _eval_loss(answers: Array, labels: Array, weights: Array) -> Array:
    """A language model's loss a token: `answers` are mean losses of rows, `labels` the numbers of
    tokens that they train. Rows without any do not count."""
    sums = np.where(labels > 0, answers * labels, 0.0)
    return sums @ weights.T / np.maximum(weights @ labels, 1e-300)


LANGUAGE = "eval_loss"  # the metric of language models
METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    LANGUAGE: _eval_loss,
}
