"""H2: thresholds that are there are found, with their direction; those that are not are not claimed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rankscope.analysis.brokenfit import Wild
from rankscope.analysis.brokenline import Design, rising
from rankscope.analysis.drift import drift
from rankscope.analysis.knots import NO_RISE, Knots, candidates
from rankscope.analysis.threshold import checkpoints, thresholds
from simulate import Truth, study


def found(truth: Truth, seed: int = 0, resamples: int = 200, **options):
    frames = study(truth, seed=seed, **options)
    rng = np.random.default_rng(seed)
    return thresholds(
        frames["trials"],
        frames["metrics"],
        frames["spectra"],
        drift(frames["spectra"]),
        rng=rng,
        resamples=resamples,
    )[0]


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
    t = found(Truth(threshold=None, warmup=0.3, noise=0.003), seed=4)
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
    points = checkpoints(frames["trials"], frames["metrics"], drift(frames["spectra"]))
    one = points[points["trial"].eq("t00003")].iloc[2]
    metric = frames["metrics"]
    same = metric["trial"].eq("t00003") & metric["step"].eq(one["step"])
    assert one["metric_value"] == metric.loc[same, "metric_value"].item()
    assert len(points) == len(metric)


def errors_of(design, y):
    return design.errors(design.products(y).sum(axis=1)[:, None], design.squares(y, y).sum()[None])[:, :, 0]


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_fits_equal_generalised_least_squares(correlation):
    """One Gram matrix of rises and hinges, against `lstsq` on rows made independent by the root of their covariance."""
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(8), [3, 4, 5, 4, 3, 4, 5, 4])
    u, x = rng.uniform(0, 2, len(clusters)), rng.uniform(-5, 0, len(clusters))
    x[3] = -np.inf  # the size of a zero update
    slow = np.array([-4.0, -3.0])
    y = 0.8 - 0.1 * rising(x, slow) - 0.2 * np.maximum(0, u - 0.7) + 0.05 * rng.normal(size=len(u))
    knots = Knots(
        np.array([NO_RISE, slow]),
        np.array([0.0, 0.7, np.inf]),
        np.array([1.8, 1.8, np.inf]),
        first=np.zeros(2),
    )
    known = rising(x, np.array([-2.0, -1.0]))[:, None]
    design = Design(u, clusters, knots, x=x, known=known, correlation=correlation)
    found = errors_of(design, y)
    same = clusters[:, None] == clusters
    covariance = np.where(same, correlation, 0.0) + (1 - correlation) * np.eye(len(u))
    white = np.linalg.inv(np.linalg.cholesky(covariance))
    checked = 0
    for w, p in np.argwhere(knots.allowed):
        turn, floor = knots.turn[p], knots.floor[p]
        ones = np.ones_like(u)
        late = -np.clip((u - turn) / (floor - turn), 0, 1) if np.isfinite(turn) else 0 * u
        shapes = [-rising(x, knots.rise[w]), late, ones, known[:, 0]]
        basis = white @ np.stack(shapes, axis=1)
        oracle, *_ = np.linalg.lstsq(basis, white @ y)
        if (oracle[:2] < -1e-12).any():
            assert np.isinf(found[w, p])
            continue
        left = ((basis @ oracle - white @ y) ** 2).sum() * (1 - correlation)
        assert found[w, p] == pytest.approx(left, rel=1e-9)
        again = design.coefficients((w, p), design.products(y).sum(axis=1))
        assert again == pytest.approx(oracle, abs=1e-9)
        np.testing.assert_allclose(
            design.curve((w, p), again), np.stack(shapes, axis=1) @ oracle, rtol=0, atol=1e-9
        )
        checked += 1
    assert checked >= 3


def test_wild_draws_equal_fits_to_flipped_residuals():
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(15), 4)
    u, x, y = rng.uniform(0, 2, 60), rng.normal(size=60), rng.normal(size=60)
    design = Design(u, clusters, candidates(u, clusters, x=x), x=x, correlation=0.3)
    fitted = 0.1 * u
    wild = Wild(15, 7, np.random.default_rng(0))
    drawn = wild.errors(design, fitted, y)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(15, 7))
    for r in range(7):
        again = errors_of(design, fitted + signs[clusters, r] * (y - fitted))
        np.testing.assert_allclose(drawn[:, :, r], again, rtol=1e-9)


def test_many_trials_share_their_signs():
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(1000), 2)
    u, x, y = rng.uniform(0, 2, 2000), rng.normal(size=2000), rng.normal(size=2000)
    design = Design(u, clusters, candidates(u, clusters, x=x), x=x)
    drawn = Wild(1000, 50, rng).errors(design, np.zeros(2000), y)
    assert np.isfinite(drawn.min(axis=(0, 1))).all()
    assert (drawn.min(axis=(0, 1)) <= (y**2).sum()).all()


def test_rows_that_count_as_independent_claim_too_much():
    """The hazard: evaluations of one trial resemble each other. The cure: one sign per trial, in the same search."""
    truth = Truth(threshold=None, trial_noise=0.03)
    frames = [study(truth, seed=s, full=False) for s in range(20)]
    rows = [checkpoints(f["trials"], f["metrics"], drift(f["spectra"])) for f in frames]
    p = [stats.linregress(r["drift"].abs(), r["metric_value"]).pvalue for r in rows]
    assert np.mean(np.array(p) < 0.05) > 0.2
    assert sum(found(truth, seed=s, resamples=100, full=False).identified for s in range(20)) <= 2


def test_candidates_leave_three_trials_on_either_side():
    clusters = np.arange(10)
    u = np.linspace(0.1, 1.0, 10)
    knots = candidates(u, clusters)
    turns = knots.turn[np.isfinite(knots.turn) & (knots.turn > 0)]
    assert (turns > u[2]).all()
    assert (turns < u[-3]).all()


def test_a_threshold_lies_beyond_three_trials_that_have_learnt():
    clusters = np.repeat(np.arange(10), 2)
    x = np.tile([-3.0, 0.0], 10)  # every trial learns between its two evaluations
    u = np.where(x < 0, 0.0, np.repeat(np.linspace(0.1, 1.0, 10), 2))
    knots = candidates(u, clusters, x=x)
    rises = knots.rise[:, 1] == 0.0
    assert rises.any()
    turns = np.broadcast_to(knots.turn, knots.allowed.shape)[rises][knots.allowed[rises]]
    assert (turns[turns > 0] > 0.3).all()


@pytest.mark.parametrize("direction", [-1, 1])
def test_what_was_never_learnt_is_not_lost(direction):
    """Trials of small rates neither learn nor drift: beside them a collapse looks like the usual performance."""
    truth = Truth(direction=direction, warmup=0.3, learnt=0.05, threshold=1.4, decline=0.6)
    t = found(truth, seed=2)
    assert t.identified, t.reason
    assert abs(t.drift) == pytest.approx(1.4, abs=0.15)
    assert t.plateau == pytest.approx(0.8, abs=0.02)
    assert t.p_unlearnt < 0.05
    assert 0.03 < t.learnt_from < 0.2
    assert 0.2 < t.learning / t.checkpoints < 0.8


def test_sizes_without_any_spread_leave_nothing_out():
    frames = study(Truth(), seed=1)
    drifts = drift(frames["spectra"]).assign(size=0.1)
    rng = np.random.default_rng(1)
    t = thresholds(frames["trials"], frames["metrics"], frames["spectra"], drifts, rng=rng, resamples=100)[0]
    assert t.learning == 0
    assert t.identified, t.reason


def test_no_loss_is_excluded_where_nothing_was_learnt():
    """A constant at chance, from the smallest update to the largest."""
    t = found(Truth(threshold=None, plateau=0.5, noise=0.003), seed=4)
    assert t.change_low > -0.02
    assert not t.flat
