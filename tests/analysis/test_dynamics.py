"""H3: fixed effects inside trials, and correlations of drift with time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscope.analysis.dynamics import KNOT, dynamics, rank_correlation, slopes
from rankscope.analysis.frames import Frames
from simulate import Truth, study


def table(rng, before=0.2, after=-0.1, trials=20):
    rows = []
    for i in range(trials):
        u = np.sort(rng.uniform(0.15, 2.0, 6))
        y = rng.normal(0, 1) + before * np.minimum(u, KNOT) + after * np.maximum(0, u - KNOT)
        y = y + rng.normal(0, 0.01, 6)
        rows.append(
            pd.DataFrame(
                {
                    "trial": f"t{i}",
                    "step": range(6),
                    "log_drift": -u,
                    "metric_value": y,
                    "eval_loss": -y,
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def test_slopes_are_those_inside_trials_though_levels_differ():
    rows = table(np.random.default_rng(0))
    found = slopes(rows)
    assert found["metric_before"] == pytest.approx(0.2, abs=0.02)
    assert found["metric_after"] == pytest.approx(-0.1, abs=0.02)
    assert found["loss_after"] == pytest.approx(-found["metric_after"])
    assert found["metric_after_low"] < -0.1 < found["metric_after_high"]
    assert found["knot"] == pytest.approx(0.5)
    # The oracle: one column per trial, ordinary least squares.
    u = -rows["log_drift"].to_numpy()
    X = np.column_stack(
        [
            np.minimum(u, KNOT),
            np.maximum(0, u - KNOT),
            pd.get_dummies(rows["trial"]).to_numpy(float),
        ]
    )
    oracle = np.linalg.lstsq(X, rows["metric_value"].to_numpy(), rcond=None)[0]
    assert [found["metric_before"], found["metric_after"]] == pytest.approx(oracle[:2])


def test_an_interval_and_its_p_are_of_one_t_with_a_degree_less_than_trials():
    found = slopes(table(np.random.default_rng(2), trials=4))
    half = (found["metric_after_high"] - found["metric_after_low"]) / 2
    t = found["metric_after"] / (half / stats.t.ppf(0.975, 3))
    assert found["metric_after_p"] == pytest.approx(2 * stats.t.sf(abs(t), 3))


def test_slopes_cover():
    hits = 0
    for seed in range(100):
        found = slopes(table(np.random.default_rng(seed), trials=10))
        hits += found["metric_after_low"] <= -0.1 <= found["metric_after_high"]
    assert 88 <= hits <= 100


def test_nothing_is_said_without_checkpoints_on_both_sides():
    rows = table(np.random.default_rng(0))
    assert np.isnan(slopes(rows[rows["log_drift"].gt(-KNOT)])["metric_after"])
    assert np.isnan(slopes(rows[rows["trial"].isin(["t0", "t1"])])["metric_after"])


def test_correlation_with_time_and_tasks_that_learnt():
    frames = study(Truth(threshold=0.6, noise=0.005), tasks=("one", "two"), evaluations=8)
    trials = frames["trials"]
    idle = trials["task"].eq("two")
    frames |= {"trials": trials.assign(best=trials["best"].where(~idle, 0.5))}
    found = dynamics(Frames(**frames), rng=np.random.default_rng(0), resamples=99)
    assert found.tasks["task"].tolist() == ["one"]
    assert found.left_out == ["two"]
    assert found.tasks["growing_low"][0] > 0
    assert found.tasks["metric_after_p_holm"][0] < 0.01


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(1)
    rows = pd.DataFrame({"trial": "a", "x": rng.integers(0, 5, 12), "y": rng.normal(size=12)})
    oracle = stats.spearmanr(rows["x"], rows["y"]).statistic
    assert rank_correlation(rows, "x", "y")["a"] == pytest.approx(oracle)
    assert rank_correlation(rows.iloc[:2], "x", "y").isna().all()
