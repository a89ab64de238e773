"""H4: pairs of different seeds only, and intervals over seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis.alignment import alignment, contrast
from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import jackknife
from rankscope.analysis.verdicts.alignment import alignment_verdict
from rankscope.analysis.verdicts.verdict import interval_of
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


def test_a_pair_without_a_cosine_makes_no_seed():
    """An update that is zero has no direction: its seed must not count as one that says nothing."""
    pairs = [(s, o, 0.1 * s + 0.3 * o) for s in range(4) for o in range(4) if s != o]
    lora = pd.DataFrame(pairs, columns=["seed", "seed_reference", "cosine"])
    full = lora.assign(cosine=0.5 - 0.2 * lora["cosine"])
    of_zero = pd.DataFrame({"seed": [4, 0], "seed_reference": [0, 4], "cosine": np.nan})
    found = contrast(pd.concat([lora, of_zero]), pd.concat([full, of_zero]))
    assert found == contrast(lora, full)
    assert found.clusters == 4


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


@pytest.mark.parametrize(
    ("low", "high", "word", "said"),
    [
        (-0.20, -0.06, "supported", ""),
        (-0.20, -0.04, "undecided", "further, but not shown to be by 0.05"),
        (-0.04, -0.01, "contradicted", "further, by less than 0.05, which counts as none"),
        (-0.04, 0.02, "contradicted", ""),
        (0.01, 0.30, "contradicted", ""),
        (-0.30, 0.02, "undecided", ""),
    ],
)
def test_a_negligible_difference_is_no_support(low, high, word, said):
    found = aligned(Truth(cosine=0.15, full_cosine=0.3), seeds=3)
    rows = found.contrasts.assign(contrast=(low + high) / 2, low=low, high=high)
    verdict = alignment_verdict(replace(found, contrasts=rows))
    assert verdict.verdict == word
    assert (said or "further") in " ".join(verdict.sentences)
    assert ("none)" in " ".join(verdict.sentences)) is bool(said)


def test_what_is_missing_for_a_contrast_is_named():
    frames = study(Truth(), seeds=3)
    pairs, seeds = frames["comparison"], frames["trials"].set_index("trial")["seed"]
    same = pairs["trial"].map(seeds).eq(pairs["reference"].map(seeds))
    for kept, words in (
        (pairs["reference"].map(seeds).eq(0), "No two full fine-tunings of different seeds"),
        (same, "No pair of LoRA and full fine-tuning with different seeds"),
    ):
        given = Frames(**(frames | {"comparison": pairs[kept]}))
        found = alignment(given, rng=np.random.default_rng(0), resamples=9)
        assert alignment_verdict(found).sentences[0].startswith(words)


def test_barriers_and_cka_are_means_over_pairs_with_intervals_over_seeds():
    """Values of pairs, the same in each layer: each layer would else count as one more pair."""
    frames = study(Truth(), seeds=4)
    rng, pairs = np.random.default_rng(0), frames["comparison"]
    each = pairs[["trial", "reference"]].drop_duplicates()
    each = each.assign(barrier=rng.normal(size=len(each)), cka=rng.uniform(size=len(each)))
    each.loc[each.index[::7], "barrier"] = np.nan  # what was not evaluated
    given = pairs.merge(each, on=["trial", "reference"])
    found = alignment(Frames(**(frames | {"comparison": given})), rng=np.random.default_rng(0))
    rows = found.pairs.drop_duplicates(["trial", "reference"])
    rows = rows[~rows["same_seed"]]
    for row in found.contrasts.to_dict("records"):
        lora = rows[rows["kind"].eq("lora full") & rows["rank"].eq(row["rank"])]
        full = rows[rows["kind"].eq("full full")]
        for name in ("barrier", "cka"):
            assert row[f"{name}_lora_full"] == pytest.approx(lora[name].mean())
            difference = lora[name].mean() - full[name].mean()
            assert row[f"{name}_contrast"] == pytest.approx(difference)
            wanted = contrast(lora.dropna(subset=[name]), full.dropna(subset=[name]), name)
            assert row[f"{name}_contrast_low"] == wanted.low < wanted.estimate
            alone = jackknife(
                range(4),
                lambda kept, lora=lora, name=name: float(
                    lora[lora["seed"].isin(kept) & lora["seed_reference"].isin(kept)][name].mean()
                ),
            )
            assert row[f"{name}_lora_full_high"] == pytest.approx(alone.high)
    sentence = next(s for s in alignment_verdict(found).sentences if "loss barrier" in s)
    assert "CKA of pooled features" in sentence
    at = interval_of(found.contrasts.iloc[-1], "barrier_lora_full")
    assert f"loss barrier at the midpoint {at:.3f} (two full" in sentence


def test_an_older_comparison_has_no_barriers():
    found = aligned(Truth(), seeds=3)
    assert found.contrasts["barrier_contrast"].isna().all()
    assert not any("barrier" in sentence for sentence in alignment_verdict(found).sentences)
