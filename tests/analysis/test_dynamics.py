"""H3: correlations inside trials, and the trap of starting at the best evaluation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscope.analysis.drift import drift
from rankscope.analysis.dynamics import dynamics, rank_correlation
from simulate import Truth, study


def test_rank_correlation_is_spearman():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"trial": np.repeat(list("abc"), 9), "x": rng.normal(size=27)})
    rows["y"] = np.round(rows["x"] + rng.normal(size=27))  # with ties
    found = rank_correlation(rows, "x", "y")
    for name, part in rows.groupby("trial"):
        assert found[name] == pytest.approx(stats.spearmanr(part["x"], part["y"]).statistic)


def test_constant_and_short_trials_have_none():
    rows = pd.DataFrame({"trial": list("aaabb"), "x": [1, 2, 3, 1, 2], "y": [5.0, 5, 5, 1, 2]})
    assert rank_correlation(rows, "x", "y").isna().all()


def test_drift_is_the_median_logarithm_over_layers():
    frames = study(seeds=1)
    moved = drift(frames["spectra"])
    row = moved[moved["trial"].eq("t00004") & moved["step"].eq(120)].iloc[0]
    own = frames["spectra"][frames["spectra"]["trial"].eq("t00004")].set_index("layer")
    base = own[own["matrix"].eq("W")]["stable_rank"]
    after = own[own["matrix"].eq("W+dW") & own["step"].eq(120)]["stable_rank"]
    assert row["drift"] == pytest.approx(np.log(after / base).median())
    assert row["low"] <= row["drift"] <= row["high"]


def test_growing_drift_and_falling_validation_are_seen():
    frames = study(Truth(noise=0.005, threshold=0.3), evaluations=12, rates=(1e-3, 1e-2))
    found = dynamics(
        frames["trials"], frames["metrics"], drift(frames["spectra"]), rng=np.random.default_rng(0)
    )
    assert found.growing.low > 0.8
    assert found.falling.high < -0.5
    assert found.growing.high <= 1
    assert found.growing.cluster == "seed"


def test_noise_alone_does_not_make_validation_fall():
    """From the best evaluation on, noise falls by construction; after it, it does not."""
    frames = study(Truth(threshold=None), evaluations=12, seeds=6)
    found = dynamics(
        frames["trials"], frames["metrics"], drift(frames["spectra"]), rng=np.random.default_rng(0)
    )
    assert found.falling.low < 0 < found.falling.high
    best = frames["trials"].set_index("trial")["best_step"]
    metrics = frames["metrics"]
    biased = metrics[metrics["step"] >= metrics["trial"].map(best)]
    assert rank_correlation(biased, "step", "metric_value").mean() < -0.2
