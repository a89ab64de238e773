"""Values at rates that were chosen on the seeds that are compared: the hazard, and its cure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis.rate_choice import left_out, upper, widening


def table(values: np.ndarray, **columns: object) -> pd.DataFrame:
    """Trials of ``values`` (ranks, rates, seeds)."""
    places = np.indices(values.shape).reshape(3, -1)
    frame = pd.DataFrame(dict(zip(("rank", "learning_rate", "seed"), places, strict=True)))
    best = values.ravel()
    same = {"model": "m", "task": "t", "scaling": "alpha/r", "method": "lora", **columns}
    return frame.assign(rank=frame["rank"] + 1, best=best, **{"reported": best, **same})


def chosen(trials: pd.DataFrame) -> pd.DataFrame:
    """Those at each rank's rate 0: whichever, since every value is replaced."""
    return trials[trials["learning_rate"].eq(0)]


@pytest.mark.parametrize(("seeds", "rates", "hazard"), [(3, 3, 0.07), (5, 6, 0.10)])
def test_equal_rates_make_students_interval_too_short_and_widening_cures_it(
    seeds: int, rates: int, hazard: float
):
    """The true value is 0: 5 % of upper ends of -value may lie below it (2,000 studies: +- 1 %)."""
    rng, plain, widened = np.random.default_rng(11), 0, 0
    for _ in range(2000):
        values = rng.normal(size=(rates, seeds))
        own = [values[np.delete(values, s, axis=1).sum(axis=1).argmax(), s] for s in range(seeds)]
        plain += upper(-np.array(own)) < 0
        widened += upper(-np.array(own), rates) < 0
    assert plain / 2000 > hazard
    assert abs(widened / 2000 - 0.05) < 0.013
    assert widening(seeds, 1) == 1


def test_a_rate_that_is_shown_to_be_worse_widens_nothing():
    values = np.array([[[0.80, 0.81, 0.79], [0.70, 0.72, 0.69], [0.795, 0.80, 0.80]]])
    trials = table(values)
    _, choices = left_out(trials, chosen(trials), 1.0)
    assert choices[1].rates == 2  # 0.1 worse with a spread of 0.005: not among them
    _, choices = left_out(trials, chosen(trials), -1.0)
    assert choices[1].rates == 1  # of a loss, 0.70 is the best by far


def test_rows_that_chose_nothing_are_told_at_a_rate_of_the_other_seeds():
    """The seed's own luck is on both halves of the rows, so that a split alone does not cure it."""
    trials = table(np.array([[[0.9, 0.7, 0.7], [0.7, 0.9, 0.9]]]))
    trials["reported"] = trials["best"] - 0.05
    found, _ = left_out(trials, chosen(trials), 1.0)
    # over seeds 1, 2 rate 1 is best; over 0 and 2, or 0 and 1, both are: the smaller
    assert found["reported"].tolist() == pytest.approx([0.65, 0.65, 0.65])


def test_rates_of_different_seeds_leave_nothing_out():
    values = np.full((1, 2, 4), np.nan)
    values[0, 0, :2], values[0, 1, 2:] = (0.8, 0.81), (0.79, 0.8)
    trials = table(values)
    found, choices = left_out(trials, chosen(trials), 1.0)
    assert choices[1].mixed
    assert found["reported"].equals(chosen(trials)["reported"])
    values[0, 0, 2] = 0.8  # a rate with more seeds is chosen for them, not for its values
    trials = table(values)
    assert not left_out(trials, chosen(trials), 1.0)[1][1].mixed
