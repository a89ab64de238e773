"""What one would do without thinking of clusters or of the search: for
`calibration.py` to show what it costs.

Rows (one layer of one trial, one evaluation of one trial) count as independent. Letters:
N rows, R resamples, J grid.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def exponent(
    points: pd.DataFrame, rng: np.random.Generator, resamples: int
) -> tuple[float, float, float]:
    """b by one straight line through all rows, with the percentile bootstrap over
    rows: estimate, low, high."""
    x = np.log(points["rank"].to_numpy(dtype=float))
    y = np.log(points["stable_rank"].to_numpy(dtype=float))
    weights = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=resamples).astype(float)
    slopes = _slope(x, y, weights)
    low, high = np.quantile(slopes, [0.025, 0.975])
    return float(_slope(x, y, np.ones((1, len(x))))[0]), float(low), float(high)


def _slope(x: Array, y: Array, weights: Array) -> Array:
    """Weighted least squares, a row of `weights` (R, N) at a time: (R,)."""
    n, sx, sy, sxx, sxy = (weights @ v for v in (np.ones_like(x), x, y, x * x, x * y))
    return (sxy - sx * sy / n) / (sxx - sx * sx / n)


def straight_line(u: Array, y: Array) -> float:
    """p-value of "the metric does not fall with drift", from the t test of a
    straight line through the rows."""
    return float(stats.linregress(u, y, alternative="less").pvalue)


def grid_search(
    u: Array, y: Array, rng: np.random.Generator, resamples: int
) -> tuple[float, float, float, float]:
    """y = p - d max(0, u - t), t by grid search: estimate, percentile interval over rows, and p.

    p is that of the slope at the chosen t, as if that t had been known before.
    """
    grid = np.linspace(0.02, 0.98, 49) * u.max()
    hinge = np.maximum(0, u - grid[:, None])  # (J, N)
    weights = rng.multinomial(len(u), np.full(len(u), 1 / len(u)), size=resamples).astype(float)
    weights[0] = 1
    n, sy = weights.sum(axis=1), weights @ y
    sh, shh, shy = weights @ hinge.T, weights @ (hinge**2).T, weights @ (hinge * y).T  # (R, J)
    top = shy - sh * (sy / n)[:, None]
    gain = np.where(top < 0, top**2 / np.maximum(shh - sh**2 / n[:, None], 1e-12), 0.0)
    turns = grid[gain.argmax(axis=1)]
    low, high = np.quantile(turns[1:], [0.025, 0.975])
    p = stats.linregress(np.maximum(0, u - turns[0]), y, alternative="less").pvalue
    return float(turns[0]), float(low), float(high), float(p)
