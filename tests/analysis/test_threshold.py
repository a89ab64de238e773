"""H2: the dose is the one that was put in, and nothing is claimed where nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import Interval
from rankscope.analysis.threshold import threshold, thresholds
from rankscope.analysis.threshold.dose import fits
from rankscope.analysis.threshold.evidence import NEAR, evidence, excess_of_best
from rankscope.analysis.threshold.losses import brackets, tolerated
from rankscope.analysis.threshold.threshold import GRADUAL, UNLEARNT
from rankscope.analysis.verdicts.threshold import threshold_verdict
from simulate import Truth, study


def found(truth: Truth, **options):
    frames = Frames(**study(truth, seed=1, full=False, evaluations=8, **options))
    return thresholds(frames, rng=np.random.default_rng(0), resamples=199)[0]


def points(rows):
    """Checkpoints of (trial, rate, seed, log_drift, metric), in the order of their steps."""
    table = pd.DataFrame(
        rows, columns=["trial", "learning_rate", "seed", "log_drift", "metric_value"]
    )
    return table.assign(rank=8, scaling="alpha/r", step=table.groupby("trial").cumcount())


@pytest.mark.parametrize("direction", [-1, 1])
def test_the_dose_is_recovered(direction):
    truth = Truth(threshold=0.8, decline=0.4, noise=0.01, direction=direction)
    t = found(truth)
    assert truth.half == pytest.approx(0.8 + 0.15 / 0.4, abs=0.01)
    assert t.half.low <= truth.half <= t.half.high
    assert t.half.estimate == pytest.approx(truth.half, abs=0.1)
    assert t.answer == "supported"
    assert t.direction == ("falls" if direction < 0 else "rises")
    assert t.stable_rank[0] == pytest.approx(t.base * np.exp(direction * t.half.estimate))
    assert t.loss.low < 0.3 < t.loss.high + 0.02
    ratios = {0.9, 0.75, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.05}
    assert set(t.attained["ratio"]) <= (ratios if direction < 0 else {1 / c for c in ratios})
    assert len(t.attained) >= 3
    assert t.attained["ratio"].is_unique


def test_no_dose_is_told_that_is_not_shown():
    shown = found(Truth())
    assert "half of the gain is lost at" in threshold_verdict([shown]).sentences[1]
    for reason in ("half the gain is not shown to be lost inside the data", UNLEARNT):
        said = " ".join(
            threshold_verdict([replace(shown, answer="undecided", reason=reason)]).sentences
        )
        assert "half of the gain is lost at" not in said
        assert ("the metric is lower by" in said) == (reason != UNLEARNT)


def test_a_decline_from_the_start_is_told_from_a_threshold():
    """Both lose half of the gain at a drift; only one has a plateau before it."""
    linear = found(Truth(threshold=0.0, decline=0.12, noise=0.01))
    assert linear.half.low <= 1.25 <= linear.half.high
    assert linear.plateau.low < NEAR
    assert (linear.answer, linear.reason) == ("undecided", GRADUAL)
    said = threshold_verdict([linear]).sentences
    assert said[0].startswith("Half of LoRA's gain over a constant answer is lost on paraphrase (")
    assert "no plateau before it is shown" in said[0]
    assert "half of the gain is lost at" in said[1]
    sharp = found(Truth(threshold=0.8, decline=0.4, noise=0.01))
    assert sharp.answer == "supported"
    assert NEAR < sharp.plateau.low <= 0.8 + 0.02
    assert sharp.plateau.high >= 0.8 - 0.02


def falling(plateau: float, end: float) -> pd.DataFrame:
    """Near sr(W) 0.9; drifted models of a larger rate have `plateau` until the drift `end`, and
    fall to 0.5 within 0.2."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(6):
        rows += [(f"a{seed}", 1e-4, seed, -0.02, 0.9)]
        for rate in (1e-3, 1e-2):
            for u in np.arange(0.12, 1.6, 0.1) + 0.02 * seed:
                y = plateau - (plateau - 0.5) * np.clip((u - end) / 0.2, 0, 1)
                rows.append((f"{rate}-{seed}", rate, seed, -u, y))
    table = points(rows)
    return table.assign(metric_value=table["metric_value"] + rng.normal(0, 0.01, len(table)))


@pytest.mark.parametrize(
    ("plateau", "end", "answer"),
    [
        (0.9, 0.8, "supported"),
        (0.85, 0.8, "supported"),
        (0.75, 0.8, "undecided"),
        (0.9, 0.15, "undecided"),
    ],
)
def test_a_threshold_is_where_a_plateau_ends_that_keeps_the_gain(plateau, end, answer):
    """Of a gain of 0.4 a plateau at 0.85 keeps 0.875, though it lies below the references by more
    than a tenth of it; one at 0.75 keeps 0.625, and one that ends at 0.15 is no range."""
    t = threshold(
        falling(plateau, end), 0.5, 0.01, {"model": "m", "task": "t"},
        rng=np.random.default_rng(0), resamples=199,
    )  # fmt: skip
    assert t.answer == answer
    assert (t.reason == GRADUAL) == (answer == "undecided")
    assert t.kept.estimate == pytest.approx((plateau - 0.5) / 0.4, abs=0.05)
    assert t.plateau.low - 0.01 <= end <= t.plateau.high + 0.01
    assert t.plateau.estimate < t.first.estimate < t.half.estimate or plateau == 0.75


def test_the_best_of_several_is_too_high_by_what_noise_gives_it():
    """For five equal means the winner's noise is 1.163 standard errors (the expected largest of
    five normals); for means far apart there is none."""
    equal, apart = np.zeros(5), np.arange(5) * 50.0
    assert excess_of_best(equal, 1.0) == pytest.approx(1.163, abs=0.12)
    assert excess_of_best(equal, 2.0) == pytest.approx(2 * excess_of_best(equal, 1.0))
    assert excess_of_best(apart, 1.0) == pytest.approx(0.0, abs=1e-9)
    assert excess_of_best(np.zeros(1), 1.0) == 0.0


def test_nothing_lost_is_a_loss_whose_interval_holds_zero():
    """The hazard: the mean of the best rates, taken as it is, lies above what any of them gives."""
    losses, excess, covered = [], [], 0
    for seed in range(4):
        tables = study(Truth(threshold=None, noise=0.02), seed=seed, full=False, evaluations=6)
        t = thresholds(Frames(**tables), rng=np.random.default_rng(0), resamples=99)[0]
        losses.append(t.loss.estimate)
        excess.append(t.excess)
        covered += t.loss.low <= 0 <= t.loss.high
    assert np.mean(losses) + np.mean(excess) > 0.02
    assert abs(np.mean(losses)) < 0.012
    assert covered >= 3


def test_no_loss_is_no_threshold():
    t = found(Truth(threshold=None, noise=0.005))
    assert t.half.high == np.inf
    assert t.answer == "contradicted"
    assert t.loss.high < 0.03


def test_what_is_lost_is_never_more_than_there_was():
    """The hazard of the old estimator: a slope extrapolated beyond the data. Losses stay
    within the metric's range."""
    for seed in range(3):
        frames = Frames(**study(Truth(threshold=0.0, decline=0.12), seed=seed, full=False, seeds=1))
        t = thresholds(frames, rng=np.random.default_rng(0), resamples=99)[0]
        y = frames.checkpoints["metric_value"]
        assert t.loss.high <= y.max() - y.min()
        assert t.deep < t.reach
        assert t.line["log_drift"].abs().max() <= t.reach + 1e-12
        assert t.line["value"].between(y.min(), y.max()).all()


def test_unstable_trials_lose_their_gain_and_no_more():
    truth = Truth(threshold=0.8, decline=0.4, noise=0.01, floor=0.535, rows=512, outliers=0.1)
    t = found(truth)
    assert t.half.low <= truth.half <= t.half.high
    assert t.loss.high < 0.8 - 0.535 + 3 * t.noise + 0.02


def test_the_fit_is_least_squares():
    rng = np.random.default_rng(3)
    rows = [(f"t{i}", 1e-3, i, 0.0, 0.8 + 0.001 * i) for i in range(4)]
    for i in range(4, 16):
        for u in rng.uniform(0.1, 2.5, 6):
            rows.append(
                (
                    f"t{i}",
                    1e-2,
                    i,
                    -u,
                    0.8 - 0.3 * np.clip((u - 0.9) / 0.7, 0, 1) + rng.normal(0, 0.01),
                )
            )
    data = evidence(points(rows), 0.5, 0.01)
    fit = fits(data, np.ones((1, data.trials)))
    u = np.concatenate([data.near.u, data.far_u])
    y = np.concatenate([data.near.y, data.far_y])

    def residuals(p):
        return y - p[0] + p[1] * np.clip((u - p[2]) / (p[3] - p[2]), 0, 1)

    oracle = min(
        (
            least_squares(residuals, [0.8, 0.3, t, t + w])
            for t in (0.7, 0.9, 1.1)
            for w in (0.5, 0.8)
        ),
        key=lambda r: r.cost,
    )
    ours = residuals([fit.plateau[0], fit.fall[0], fit.turn[0], fit.floor[0]])
    assert (ours**2).sum() / 2 < 1.05 * oracle.cost
    down = (oracle.x[0] - 0.65) / oracle.x[1]
    assert fit.dose(np.array([0.65]))[0] == pytest.approx(
        oracle.x[2] + (oracle.x[3] - oracle.x[2]) * down, abs=0.02
    )
    assert fit.dose(np.array([0.2]))[0] == np.inf  # below the floor of the line
    assert fit.dose(np.array([0.95]))[0] == 0  # above its plateau
    assert np.isnan(fit.dose(np.array([np.nan]))[0])  # a draw without references says nothing


def test_references_are_the_rate_that_is_best_over_seeds_near_the_base():
    rows = [
        ("a", 1e-4, 0, 0.0, 0.9),
        ("b", 1e-4, 1, 0.0, 0.5),
        ("c", 1e-3, 0, 0.0, 0.8),
        ("d", 1e-3, 1, 0.01, 0.8),
    ]
    rows += [("c", 1e-3, 0, -1.0, 0.95), ("e", 1e-2, 0, -2.0, 0.5)]
    data = evidence(points(rows), 0.5, 0.01)
    assert data.near.y[data.near.chosen].tolist() == [0.8, 0.8]
    ones = np.ones((1, data.trials))
    assert fits(data, ones).near[0] == pytest.approx(0.8)
    assert fits(data, ones, excess=0.05).near[0] == pytest.approx(0.75)


def test_the_premise_fails_where_the_best_lies_away_from_the_base():
    rows = []
    rng = np.random.default_rng(0)
    for seed in range(3):
        for _rank, trial in ((8, f"near{seed}"), (8, f"far{seed}")):
            far = trial.startswith("far")
            for _step in range(5):
                value = 0.8 if far else 0.53
                rows.append(
                    (
                        trial,
                        1e-2 if far else 1e-4,
                        seed,
                        -1.2 if far else 0.0,
                        value + rng.normal(0, 0.005),
                    )
                )
    table = pd.concat(
        [points(rows).assign(rank=r, trial=lambda t, r=r: t["trial"] + f" {r}") for r in (4, 8, 16)]
    )
    t = threshold(table, 0.5, 0.005, {"model": "m", "task": "t"}, rng=rng, resamples=99)
    assert t.answer == "contradicted"
    assert t.premise.high < 0.8
    headline, sentence = threshold_verdict([t]).sentences
    assert "do not reach the best values" in headline
    assert "% of the best gain (3 configurations)" in sentence
    assert "seed" not in headline
    assert "is lower by" not in sentence  # there is no gain near sr(W) to lose
    headline, sentence = threshold_verdict([replace(t, seeds=1)]).sentences
    assert "there is no such drift (one seed)" in headline
    assert "(3 configurations of one seed)" in sentence
    whole = replace(t.premise, estimate=1.0, low=1.0, high=1.0)  # every best value is a near one
    said = threshold_verdict([replace(t, reason=GRADUAL, premise=whole)]).sentences[1]
    assert "reach the best values in all of 3 configurations" in said
    assert "[100, 100]" not in said


def test_failures_that_are_rare_are_in_the_upper_end_of_a_loss():
    """One in thirty loses everything; in a study without one the spread is no sign of that."""
    rng = np.random.default_rng(0)
    rows = []
    for trial in range(8):
        rows += [(f"a{trial}", 1e-4, trial, 0.0, 0.8 + rng.normal(0, 0.004)) for _ in range(3)]
        rows += [(f"b{trial}", 1e-2, trial, -2.0, 0.8 + rng.normal(0, 0.004)) for _ in range(4)]
    t = threshold(points(rows), 0.5, 0.004, {"model": "m", "task": "t"}, rng=rng, resamples=199)
    assert t.loss.low < 0 < t.loss.high
    assert t.loss.high > 0.3 / 30  # what is lost on average
    assert t.loss.high < 0.1 * t.gain
    assert t.answer == "contradicted"  # a tenth of the gain is still excluded
    assert t.held == 0


def test_what_is_worse_than_can_be_counted_is_said():
    shown = found(Truth(threshold=0.8, decline=0.4, noise=0.01))
    assert shown.seeds == 3
    held = threshold_verdict([replace(shown, held=0.9)]).sentences[1]
    assert "or more (worse values are held there), of a gain" in held
    assert "or more" not in threshold_verdict([shown]).sentences[1]
    few = threshold_verdict([replace(shown, answer="undecided", reason="3 trials", trials=3)])
    assert few.sentences[0] == "Paraphrase has too few trials."


def test_brackets_and_their_likelihood():
    rows = [
        (f"t{s}", 1e-2, s, -u, 0.8 if u < 1 + 0.1 * s else 0.5)
        for s in range(6)
        for u in (0, 0.6, 1.3, 2.0)
    ]
    data = evidence(points(rows), 0.5, 0.01)
    pairs = brackets(data, 0.5, 0.8, 0.5)
    assert pairs["last"].tolist() == [0.6] * 4 + [1.3] * 2
    assert pairs["next"].tolist() == [1.3] * 4 + [2.0] * 2
    mu, omega = tolerated(pairs)
    assert mu.low < mu.estimate < mu.high
    assert 0.9 < mu.estimate < 1.5
    assert omega > 0
    assert not np.isfinite(tolerated(pairs.iloc[:2])[0].estimate)


def test_the_constant_answer_is_recorded_known_or_guessed_aloud():
    tables = study(
        Truth(floor=0.535, rows=512, recorded=False, threshold=0.6, decline=0.5),
        seeds=2,
        evaluations=8,
    )
    frames = Frames(**tables)
    row = frames.baselines.iloc[0]
    assert row["source"] == "repeated value"
    assert row["constant"] == pytest.approx(0.535, abs=1 / 512)
    turned = thresholds(frames, rng=np.random.default_rng(0), resamples=49)
    assert any("was not recorded for paraphrase" in c for c in threshold_verdict(turned).caveats)
    unknown = Frames(**study(Truth(recorded=False, noise=0.02), seeds=1))
    t = thresholds(unknown, rng=np.random.default_rng(0), resamples=49)[0]
    assert t.answer == "undecided"
    assert "constant answer is not known" in t.reason
    matthews = Frames(
        **(tables | {"trials": tables["trials"].assign(metric="matthews_correlation")})
    )
    assert matthews.baselines.iloc[0][["constant", "source"]].tolist() == [0.0, "by definition"]


def test_where_nothing_was_measured_a_dose_may_lie_anywhere():
    """No checkpoint between a drift of 0.4, where all is well, and 1.9, where all is lost."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{rate}-{seed}", rate, seed, -u, (0.9 if u < 1 else 0.5) + 0.003 * rng.normal())
        for rate in (1e-4, 1e-3, 1e-2)
        for seed in range(6)
        for u in (0.02, 0.3 + 0.02 * seed, *((1.9 + 0.02 * seed, 2.2) if rate > 1e-4 else ()))
    ]
    t = threshold(points(rows), 0.5, 0.003, {"model": "m", "task": "t"}, rng=rng, resamples=199)
    for dose in (t.half, t.first):
        assert dose.low <= 0.4
        assert dose.high >= 1.9
        assert dose.low < dose.estimate < dose.high
    assert t.plateau.low <= 0.4
    assert t.loss.low > 0.38


def test_ends_of_a_dose_are_moved_out_to_checkpoints_and_no_further():
    rows = [(f"a{k}", 1e-3, k, -u, 0.5) for k, u in enumerate((0.05, 0.2, 0.6, 1.0))]
    data = evidence(points(rows), 0.5, 0.01)
    for given, right in (
        ((0.3, 0.7), (0.2, 1.0)),
        ((0.2, 0.6), (0.2, 1.0)),  # all may have been held at 0.6, and lost just behind it
        ((0.1, 1.0), (0.0, 1.0)),
        ((0.7, np.inf), (0.6, np.inf)),
        ((np.inf, np.inf), (np.inf, np.inf)),
    ):
        moved = data.to_checkpoints(Interval(0.5, *given, "trial", 4))
        assert (moved.low, moved.high) == pytest.approx(right)
    unknown = data.to_checkpoints(Interval(0.5, np.nan, np.nan, "trial", 1))
    assert not unknown.known


def test_open_doses_are_said_to_be_open():
    t = found(Truth(threshold=None))
    assert t.ratio(Interval(np.inf, 1.0, np.inf, "trial", 9)) == (
        0.0,
        0.0,
        pytest.approx(np.exp(-1)),
    )
    assert pytest.approx(np.log(1.1)) == NEAR


def test_rounding_does_not_choose_between_equally_good_lines():
    """Nothing was measured between drifts of 0.2 and 0.9: of all lines that fall there, and of two
    rates that do equally well, the same are taken whatever the last digits and the order of the
    trials."""
    rows = []
    for k in range(12):
        rate, high = (1e-3, 1e-2)[k % 2], (0.7, 0.8, 0.9)[(k // 2 + k % 2) % 3]
        rows += [(f"t{k}", rate, k // 2 % 3, -0.01 * k / 2, high)]
        rows += [(f"t{k}", rate, k // 2 % 3, -u, high) for u in (0.1 + 0.005 * k, 0.2)]
        rows += [(f"t{k}", rate, k // 2 % 3, -u, 0.1 * (k % 3)) for u in (0.9, 1 + k / 100)]
    table = points(rows)
    one = threshold(
        table, 0.0, 0.01, {"model": "m", "task": "t"}, rng=np.random.default_rng(0), resamples=9
    )
    assert one.line["log_drift"].abs().iloc[1:3].tolist() == pytest.approx([0.2, 0.9], abs=0.01)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        shaken = table.assign(
            log_drift=table["log_drift"] * (1 + 1e-12 * rng.normal(size=len(table))),
            metric_value=table["metric_value"] + 1e-12 * rng.normal(size=len(table)),
        )
        order = rng.permutation(table["trial"].unique())
        moved = pd.concat([shaken[shaken["trial"].eq(name)] for name in order])
        other = threshold(
            moved, 0.0, 0.01, {"model": "m", "task": "t"}, rng=np.random.default_rng(0), resamples=9
        )
        for name in ("half", "first", "plateau", "kept", "near"):
            a, b = getattr(one, name), getattr(other, name)
            a, b = (v.estimate if isinstance(v, Interval) else v for v in (a, b))
            assert a == pytest.approx(b, abs=1e-9), name
        assert np.allclose(one.line, other.line, atol=1e-9)


def test_equal_values_do_not_fall_by_rounding():
    rows = [(f"t{k}", 1e-3, k, -u, 0.3) for k in range(9) for u in (0.0, 0.3 + k / 50, 1.1)]
    for value in (0.3, 0.7, -2.5358624, 1.1):
        data = evidence(points(rows).assign(metric_value=value), -9.0, 0.01)
        rng = np.random.default_rng(1)
        fit = fits(data, rng.multinomial(9, np.full(9, 1 / 9), size=20) * 9 / 8)
        assert (fit.fall == 0).all()
