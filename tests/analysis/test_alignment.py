"""H4: pairs of different seeds only, and intervals over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis.alignment import alignment, contrast
from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import jackknife
from rankscope.analysis.verdicts.alignment import alignment_verdict
from simulate import Truth, study


def aligned(truth: Truth, **options):
    return alignment(Frames(**study(truth, **options)), rng=np.random.default_rng(0), resamples=49)


def test_same_seed_pairs_do_not_enter():
    """The hazard: one seed brings updates nearer by 0.2, so that LoRA seems as near as
    full fine-tuning to itself."""
    found = aligned(Truth(cosine=0.15, full_cosine=0.3, same_seed=0.2), seeds=5)
    row = found.contrasts[found.contrasts["rank"].eq(64)].iloc[0]
    assert row["same_seed"] > 0.3
    assert row["low"] < -0.15 < row["high"] < 0
    assert row["seeds"] == 5
    assert alignment_verdict(found).verdict == "supported"


def test_pairs_of_one_seed_alone_leave_it_open():
    frames = study(seeds=3)
    seeds = frames["trials"].set_index("trial")["seed"]
    pairs = frames["comparison"]
    same = seeds[pairs["trial"]].to_numpy() == seeds[pairs["reference"]].to_numpy()
    lora = frames["trials"].set_index("trial")["method"][pairs["trial"]].eq("lora").to_numpy()
    found = alignment(
        Frames(**(frames | {"comparison": pairs[same | ~lora]})), rng=np.random.default_rng(0)
    )
    said = alignment_verdict(found)
    assert said.verdict == "undecided"
    assert "pairs of one seed cannot be set against" in said.sentences[0]


def test_the_contrast_is_a_difference_of_means_over_pairs():
    rng = np.random.default_rng(0)
    rows = [(s, t, rng.normal()) for s in range(4) for t in range(4) if s != t]
    lora = pd.DataFrame(rows, columns=["seed", "seed_reference", "cosine"])
    full = lora[lora["seed"].lt(lora["seed_reference"])].assign(cosine=lambda f: f["cosine"] + 1)
    found = contrast(lora, full)
    assert found.estimate == pytest.approx(lora["cosine"].mean() - full["cosine"].mean())
    assert found.clusters == 4
    two = [side[side[["seed", "seed_reference"]].max(axis=1).lt(2)] for side in (lora, full)]
    assert np.isfinite(contrast(*two).estimate)
    assert not contrast(*two).known


def test_the_jackknife_of_a_mean_is_the_t_interval():
    values = np.random.default_rng(0).normal(size=7)
    found = jackknife(range(7), lambda kept: float(values[list(kept)].mean()))
    from scipy import stats

    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize(("size", "high"), [(64, True), (128, True), (130, False)])
def test_high_is_half_of_the_dimension(size, high):
    """The largest rank is 64: high where it is at least half of the layers' dimension."""
    said = alignment_verdict(aligned(Truth(cosine=0.0), seeds=3, size=size)).sentences[0]
    assert ("too low to speak about high ranks" in said) is not high
