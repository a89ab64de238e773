"""A small, fixed draw of `benchmarks/calibration.py`: intervals cover, and nothing is claimed where nothing is."""

from __future__ import annotations

import numpy as np

from rankscope.analysis.drift import drift
from rankscope.analysis.growth import growth
from rankscope.analysis.selection import chosen
from rankscope.analysis.threshold import thresholds
from simulate import Truth, study

STUDIES = 20


def answers(truth: Truth, seed: int):
    frames = study(truth, seed=seed, seeds=2, full=False)
    rng = np.random.default_rng(seed)
    b = growth(chosen(frames["trials"]), frames["spectra"], rng=rng, resamples=99).overall
    found = thresholds(
        frames["trials"],
        frames["metrics"],
        frames["spectra"],
        drift(frames["spectra"]),
        rng=rng,
        resamples=99,
    )[0]
    return b, found


def test_intervals_hold_the_truth():
    """95 % each: fewer than 17 of 20 would be seen once in 60 draws of the seeds."""
    held_b, held_t, errors = 0, 0, []
    for seed in range(STUDIES):
        rng = np.random.default_rng(seed)
        truth = Truth(
            b=rng.uniform(0, 1),
            threshold=rng.uniform(0.4, 1.4),
            decline=rng.uniform(0.1, 0.5),
            noise=rng.choice([0.01, 0.03]),
            b_layers=0.03,
        )
        b, found = answers(truth, seed)
        assert found.identified
        held_b += b.low < truth.b < b.high
        held_t += abs(found.low) <= truth.threshold <= abs(found.high)
        errors.append(abs(found.drift) - truth.threshold)
    assert held_b >= 17
    assert held_t >= 17
    assert abs(np.mean(errors)) < 0.03  # a hundredth of the range


def test_a_decline_from_the_start_to_a_floor_is_no_threshold():
    truths = [Truth(threshold=0.0, decline=d) for d in np.linspace(0.3, 0.6, STUDIES)]
    assert sum(answers(truth, seed)[1].identified for seed, truth in enumerate(truths)) <= 4
