"""H2: thresholds that are there are found, with their direction; those that are not are not claimed."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope.analysis.brokenline import Knots, candidates, ramp_basis, resampled, rise_basis, sums
from rankscope.analysis.threshold import checkpoints, thresholds
from simulate import Truth, study


def found(truth: Truth, seed: int = 0, resamples: int = 200, **options):
    frames = study(truth, seed=seed, **options)
    rng = np.random.default_rng(seed)
    return thresholds(frames["trials"], frames["metrics"], frames["spectra"], rng=rng, resamples=resamples)[0]


@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_threshold_and_direction_are_recovered(direction, warmup):
    truth = Truth(direction=direction, warmup=warmup, threshold=0.8)
    t = found(truth, seed=1)
    assert t.identified, t.reason
    assert t.direction == ("rises" if direction > 0 else "falls")
    assert np.sign(t.drift) == direction
    assert abs(t.drift) == pytest.approx(0.8, abs=0.1)
    assert abs(t.low) < abs(t.drift) < abs(t.high)
    mid, low, high = t.stable_rank
    assert low < mid < high
    assert mid == pytest.approx(t.base * np.exp(direction * 0.8), rel=0.1)


def test_a_floor_does_not_pull_the_threshold():
    t = found(Truth(decline=0.6), seed=2)  # at the floor long before the largest drift
    assert t.identified
    assert abs(t.drift) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_no_threshold_is_claimed_where_there_is_none(warmup):
    truth = Truth(threshold=None, warmup=warmup)
    claims = sum(found(truth, seed=s, resamples=100).identified for s in range(15))
    assert claims <= 2  # 5 % of 15, and some luck


def test_a_decline_from_the_start_is_no_threshold():
    claims = sum(found(Truth(threshold=0.0, decline=0.1), seed=s, resamples=100).identified for s in range(8))
    assert claims <= 1


def test_flat_performance_excludes_a_loss():
    t = found(Truth(threshold=None, noise=0.003), seed=4)
    assert not t.identified
    assert t.flat
    assert t.change_low > -0.02


def test_a_decline_is_never_flat():
    assert not found(Truth(threshold=0.0, decline=0.1), seed=1).flat


def test_few_trials_are_said():
    t = found(Truth(), seeds=1, ranks=(4,))
    assert not t.identified
    assert t.reason == "12 trials with a metric and spectra are needed, there are 5"


def test_checkpoints_stay_joined_to_their_step():
    frames = study(seeds=1)
    points = checkpoints(frames["trials"], frames["metrics"], frames["spectra"])
    one = points[points["trial"].eq("t00003")].iloc[2]
    metric = frames["metrics"]
    same = metric["trial"].eq("t00003") & metric["step"].eq(one["step"])
    assert one["metric_value"] == metric.loc[same, "metric_value"].item()
    assert len(points) == len(metric)


def test_fits_equal_least_squares_on_repeated_clusters():
    """Cluster sums and weights against `lstsq` on the rows themselves, drawn as often as the weights say."""
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(8), 4)
    u = rng.uniform(0, 2, 32)
    y = 0.8 - 0.2 * np.maximum(0, u - 0.7) + 0.05 * rng.normal(size=32)
    knots = Knots(rise=np.array([0.3]), turn=np.array([0.7]), floor=np.array([1.8]))
    weights = rng.multinomial(8, np.full(8, 1 / 8), size=5).astype(float)
    fits = resampled(sums(u, y, clusters, knots), weights)
    for r in range(5):
        rows = np.repeat(np.arange(32), weights[r].astype(int)[clusters])
        basis = np.stack([np.ones(32), -rise_basis(u, 0.3), -ramp_basis(u, 0.7, 1.8)], axis=1)[rows]
        oracle, *_ = np.linalg.lstsq(basis, y[rows])
        if (oracle[1:] >= 0).all():
            assert [fits.plateau[0, r], fits.rise[0, r], fits.drop[0, r]] == pytest.approx(oracle, abs=1e-9)
            assert fits.error[0, r] == pytest.approx(((basis @ oracle - y[rows]) ** 2).sum(), rel=1e-9)
        else:
            assert np.isinf(fits.error[0, r])
    assert np.isfinite(fits.error).any()


def test_candidates_leave_three_trials_on_either_side():
    clusters = np.arange(10)
    u = np.linspace(0.1, 1.0, 10)
    knots = candidates(u, clusters)
    turns = knots.turn[np.isfinite(knots.turn) & (knots.turn > 0)]
    assert (turns > u[2]).all()
    assert (turns < u[-3]).all()
