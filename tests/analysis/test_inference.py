"""Intervals from few numbers, where an off-by-one is felt; distributions bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscope.analysis.inference import (
    Interval,
    end,
    interval,
    jackknife,
    normal,
    stratified_draws,
    student,
)
from rankscope.analysis.paths import _median
from rankscope.analysis.threshold.losses import tolerated
from rankscope.report.table import interval_column

P = np.array([1e-12, 0.025, 0.5, 0.75, 0.95, 0.975, 1 - 1e-12, np.nan])
X = np.array([-np.inf, -40.0, -1.3, 0.0, 1e-9, 2.5, 9.0, np.inf, np.nan])


@pytest.mark.parametrize(("clusters", "said"), [(1, "1 seed"), (2, "2 seeds"), (3, "3 seeds")])
def test_what_has_no_interval_says_of_how_many(clusters: int, said: str) -> None:
    found = Interval(-1.5, np.nan, np.nan, "seed", clusters)
    assert f"{found:.1f}" == f"−1.5 (no interval: {said})"


def test_two_replicates_have_a_spread_and_one_has_none() -> None:
    found = interval(1.0, np.array([0.5, 1.5, np.nan]), "seed", 3)
    reach = stats.t.ppf(0.975, 2) * np.sqrt(0.5) * np.sqrt(3 / 2)
    assert found.low == pytest.approx(1 - reach)
    assert found.high == pytest.approx(1 + reach)
    for replicates, clusters in (([0.5], 3), ([0.5, 1.5], 1)):
        assert not interval(1.0, np.array(replicates), "seed", clusters).known


@pytest.mark.parametrize("values", [(1.0, 3.0), (1.0, 2.0, 6.0)])
def test_the_jackknife_of_a_mean_is_its_t_interval(values: tuple[float, ...]) -> None:
    found = jackknife(range(len(values)), lambda kept: float(np.mean([values[k] for k in kept])))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert not jackknife([0], lambda kept: float(len(kept))).known


def pairs(*rows: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["last", "next"])


def test_thresholds_between_pairs_are_bounded_on_both_sides() -> None:
    found, _ = tolerated(pairs((0.3, 0.5), (0.32, 0.6), (0.25, 0.45), (0.35, 0.55)))
    assert 0.2 < found.low < found.estimate < found.high < 0.7
    assert 0.3 < found.estimate < 0.5


def test_thresholds_that_most_trials_never_met_have_no_upper_end() -> None:
    found, _ = tolerated(pairs((0.3, 0.5), (0.32, 0.6), *[(0.9, np.inf)] * 8))
    assert found.high == np.inf
    assert np.isfinite(found.low)


def test_a_weighted_median() -> None:
    values = np.array([5.0, 1.0, 3.0, 4.0])
    assert _median(values, np.ones(4)) == 3
    assert _median(values, np.array([1.0, 0.0, 0.0, 1.0])) == 4
    assert _median(values, np.array([9.0, 1.0, 1.0, 1.0])) == 5
    assert _median(np.arange(1, 102.0), np.ones(101)) == 51


@pytest.mark.parametrize(
    ("strata", "together"),
    [
        ([0, 0, 0, 1, 1], [[0, 1, 2], [3, 4]]),
        ([0, 1, 2, 3], [[0, 1, 2, 3]]),
        ([0, 0, 1, 2], [[0, 1], [2, 3]]),
        ([0, 0, 0, 1, 1, 2], [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_every_cluster_is_drawn_anew_also_one_that_is_alone_in_its_stratum(
    strata: list[int], together: list[list[int]]
) -> None:
    """Each stratum keeps its weight in every draw, and a mean of n the variance s^2 / n."""
    weights = stratified_draws(np.array(strata), 20_000, np.random.default_rng(0))
    assert (weights.std(axis=0) > 0.3).all()
    y = np.random.default_rng(1).normal(size=len(strata))
    for own in together:
        np.testing.assert_allclose(weights[:, own].sum(axis=1), len(own))
        mean = weights[:, own] @ y[own] / len(own)
        assert mean.var() == pytest.approx(y[own].var(ddof=1) / len(own), rel=0.05)


def test_a_single_cluster_has_nothing_to_be_drawn_with() -> None:
    assert (stratified_draws(np.zeros(1, dtype=int), 9, np.random.default_rng(0)) == 1).all()


def test_the_normal_distribution_is_scipys() -> None:
    np.testing.assert_array_equal(normal.ppf(P), stats.norm.ppf(P))
    np.testing.assert_array_equal(normal.cdf(X), stats.norm.cdf(X))
    np.testing.assert_array_equal(normal.sf(X), stats.norm.sf(X))


def test_student_is_scipys() -> None:
    for degrees in (1, 2, 7.5, 30, 1e6, np.inf):
        np.testing.assert_array_equal(student.ppf(P, degrees), stats.t.ppf(P, degrees))
        np.testing.assert_array_equal(student.sf(X, degrees), stats.t.sf(X, degrees))
    for degrees in (0, -1, np.nan):
        assert np.isnan(student.ppf(P, degrees)).all()
        assert np.isnan(student.sf(X, degrees)).all()


def test_conclusions_do_not_import_scipy_stats() -> None:
    code = "import sys, rankscope.analysis; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_error_that_clusters_do_not_show_widens_an_interval():
    found = Interval(1.0, 0.0, 2.0, "seed", 3)
    assert found.widened(0.0) == found
    wide = found.widened(1 / 1.959964)
    assert (wide.low, wide.high) == pytest.approx((1 - 2**0.5, 1 + 2**0.5))
    assert not Interval(1.0, np.nan, np.nan, "seed", 1).widened(1.0).known


def test_no_number_is_minus_zero() -> None:
    """A tiny estimate is 0.00, with its sign where signs are asked for."""
    tiny = Interval(-0.001, -1e-12, 0.2, "seed", 3)
    assert f"{tiny}" == "0.00 [0.00, 0.20]"
    assert f"{tiny:+.1f}" == "+0.0 [+0.0, +0.2]"
    assert f"{tiny:.3f}" == "−0.001 [0.000, 0.200]"


def test_an_end_beside_zero_is_not_printed_as_zero() -> None:
    """Whether it lies below or above is what a verdict rests on."""
    near = Interval(-0.009, -0.018, -0.00025, "trial", 12)
    assert f"{near:+.3f}" == "−0.009 [−0.018, −0.0003]"
    assert f"{near.times(-1):+.3f}" == "+0.009 [+0.0003, +0.018]"
    assert f"{near:.2f}" == "−0.01 [−0.02, −0.0003]"
    cell = interval_column("loss", "loss", "+.3f")
    assert cell.text(near.estimate, near.low, near.high) == f"{near:+.3f}"
    for value, shown in ((0.0096, "0.01"), (0.0, "0.00"), (-4e-5, "-0.00004"), (np.inf, "inf")):
        assert end(value, ".2f") == shown
    assert [end(value, ".0%") for value in (0.228, 0.0, 0.002)] == ["23%", "0%", "0.2%"]
