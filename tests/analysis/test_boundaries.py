"""Where one answer ends and the next begins: values on a boundary, each decided by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscope.analysis.paths import _median
from rankscope.analysis.threshold.losses import tolerated
from rankscope.analysis.verdicts import alignment, dynamics
from rankscope.analysis.verdicts.verdict import ERROR_RATE

GROWS = {"growing_low": 0.1, "growing_high": 0.9}
FALLS = {"metric_after": -0.2, "metric_after_p_holm": ERROR_RATE / 2}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({}, "supported"),
        ({"metric_after_p_holm": ERROR_RATE}, "supported"),  # 5 % is the rate itself
        ({"metric_after_p_holm": 1.001 * ERROR_RATE}, "undecided"),
        ({"growing_low": 0.0}, "undecided"),  # an interval that begins at 0 holds 0
        ({"growing_low": -0.5, "growing_high": 0.0}, "undecided"),
        ({"growing_low": -0.5, "growing_high": -1e-9}, "contradicted"),
        ({"metric_after": 0.0}, "undecided"),  # neither falls nor rises
        ({"metric_after": 0.2}, "contradicted"),
        ({"metric_after": 0.2, "metric_after_p_holm": ERROR_RATE}, "contradicted"),
        ({"metric_after": 0.2, "metric_after_p_holm": 0.06}, "undecided"),
        ({"metric_after": math.nan, "metric_after_p_holm": math.nan}, "undecided"),
        ({"growing_low": math.nan, "growing_high": math.nan}, "undecided"),
    ],
)
def test_h3_of_one_task(changed: dict[str, float], word: str) -> None:
    row = GROWS | FALLS | changed
    assert dynamics._word(row, 1) == word
    # a loss, which is better where it is lower: the same answer to the mirrored numbers
    assert dynamics._word(row | {"metric_after": -row["metric_after"]}, -1) == word


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.4, -1.01 * alignment.CLOSE, "supported"),
        (-0.4, -alignment.CLOSE, "undecided"),  # holds a difference that counts as none
        (-0.4, -1e-9, "undecided"),
        (-alignment.CLOSE, 0.1, "undecided"),  # and a difference that counts
        (-0.99 * alignment.CLOSE, 0.1, "contradicted"),
        (-0.99 * alignment.CLOSE, -0.01, "contradicted"),  # below 0, by what counts as none
        (math.nan, math.nan, "undecided"),
    ],
)
def test_h4_of_one_group(low: float, high: float, word: str) -> None:
    assert alignment._word({"low": low, "high": high}) == word


@pytest.mark.parametrize(
    ("values", "weights", "middle"),
    [
        ([3.0, 1.0], [1.0, 1.0], 1.0),  # the least of those that will do, no mean of two
        ([3.0, 1.0, 2.0], [1.0, 1.0, 1.0], 2.0),
        ([3.0, 1.0, 2.0], [2.0, 1.0, 0.0], 3.0),
        ([3.0, 1.0, 2.0], [1.0, 0.5, 0.5], 2.0),
        ([5.0], [0.3], 5.0),
    ],
)
def test_the_median_of_weighted_trials(
    values: list[float], weights: list[float], middle: float
) -> None:
    assert _median(np.array(values), np.array(weights)) == middle


def test_a_bracket_that_begins_at_no_drift_is_open_below() -> None:
    """`last` of 0 says that the whole normal mass below `next` will do, the part below 0 as well.

    The oracle is the likelihood by hand at the answer and around it: nowhere on the grid is it
    larger by more than its steps.
    """
    pairs = pd.DataFrame({"last": [0.0, 0.0, 0.4, 0.5, 0.6], "next": [0.5, 0.7, 0.9, 1.0, np.inf]})

    def likelihood(mu: float, omega: float) -> float:
        total = 0.0
        for last, after in pairs.itertuples(index=False):
            below = 0.0 if last == 0 else stats.norm.cdf((last - mu) / omega)
            total += math.log(max(stats.norm.cdf((after - mu) / omega) - below, 1e-12))
        return total

    found, omega = tolerated(pairs)
    grid = [(m, s) for m in np.linspace(0.02, 1.4, 70) for s in np.geomspace(0.06, 0.99, 60)]
    best = max(likelihood(m, s) for m, s in grid)
    assert likelihood(found.estimate, omega) == pytest.approx(best, abs=0.01)
    # the interval: the profile falls by chi2's 95 % point at both of its ends
    for end in (found.low, found.high):
        profile = max(likelihood(end, s) for s in np.geomspace(0.05, 1.0, 200))
        assert best - profile == pytest.approx(stats.chi2.ppf(0.95, 1) / 2, abs=0.25)
