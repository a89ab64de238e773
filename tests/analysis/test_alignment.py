"""H4: what is averaged over what, the yardstick of two full fine-tunings, and stores that lack newer columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis import Frames
from rankscope.analysis.alignment import alignment
from rankscope.analysis.frames import LATER
from rankscope.analysis.verdicts import alignment_verdict
from simulate import Truth, study


def aligned(frames):
    held = Frames(**frames)
    return alignment(held.trials, held.spectra, held.comparison, rng=np.random.default_rng(0), resamples=200)


def with_two_full(frames, cosine):
    """The same with a row for each pair of full fine-tunings of one task: later seeds against the first."""
    table, trials = frames["comparison"], frames["trials"].set_index("trial")
    full = table[["reference", "layer"]].drop_duplicates()
    seeds = full["reference"].map(trials["seed"])
    first = full.loc[seeds.eq(0), "reference"].iloc[0]
    later = full[seeds.gt(0)]
    rows = table.iloc[: len(later)].assign(
        trial=later["reference"].to_numpy(), reference=first, layer=later["layer"].to_numpy(), cosine=cosine
    )
    return frames | {"comparison": pd.concat([table, rows], ignore_index=True)}


def test_two_full_fine_tunings_are_the_yardstick_and_nothing_else():
    frames = study(Truth(cosine=0.3), seeds=3)
    alone, beside = aligned(frames), aligned(with_two_full(frames, 0.6))
    assert beside.yardstick.estimate == pytest.approx(0.6)
    assert alone.yardstick.clusters == 0
    assert beside.cosine == alone.cosine
    assert len(beside.points) == len(alone.points)
    said = " ".join(alignment_verdict(beside).sentences)
    assert "differ in their seed have a cosine of 0.60" in said
    assert any("needs two seeds" in caveat for caveat in alignment_verdict(alone).caveats)


@pytest.mark.parametrize(("two", "said"), [(0.25, True), (0.6, False)])
def test_a_distance_that_two_full_fine_tunings_have_too_is_said_to_be_no_property_of_lora(two, said):
    verdict = alignment_verdict(aligned(with_two_full(study(Truth(cosine=0.3), seeds=3), two)))
    assert verdict.verdict == "supported"
    assert any("no property of LoRA" in caveat for caveat in verdict.caveats) == said


def test_means_are_those_at_the_highest_rank():
    frames = study(seeds=2)
    points = frames["comparison"].merge(frames["trials"][["trial", "rank"]], on="trial")
    top = points[points["rank"].eq(64)]
    found = aligned(frames)
    assert found.highest == 64
    assert found.means["norm_ratio"] == pytest.approx(top["norm_ratio"].mean())
    assert found.cosine.estimate == pytest.approx(top["cosine"].mean())
    assert found.cosine.cluster == "seed"


@pytest.mark.parametrize(("highest", "verdict"), [(31, "undecided"), (32, "supported"), (64, "supported")])
def test_a_high_rank_is_at_least_half_of_the_dimension(highest, verdict):
    """The layers are 64 x 64."""
    said = alignment_verdict(aligned(study(Truth(cosine=0.3), ranks=(1, 4, highest), seeds=3)))
    assert said.verdict == verdict
    assert any("too low to speak about high ranks" in s for s in said.sentences) == (highest < 32)


def test_energy_above_chance_is_nothing_for_random_subspaces():
    frames = study(seeds=2)
    k, size = frames["comparison"]["k"], 64
    frames["comparison"] = frames["comparison"].assign(captured_energy=(k / size) ** 2)
    points = aligned(frames).points
    low = points["k"] < size
    assert points.loc[low, "captured_above_chance"].abs().max() < 1e-12
    assert points.loc[~low, "captured_above_chance"].isna().all()


def test_older_stores_lack_angles_and_say_nothing_of_them():
    frames = study(seeds=2)
    found = aligned(frames | {"comparison": frames["comparison"].drop(columns=LATER)})
    assert np.isnan(found.means["left_angle_first"])
    said = " ".join(alignment_verdict(found).sentences)
    assert "angles" not in said
    assert "nan" not in said.lower()
    assert "angles" in " ".join(alignment_verdict(aligned(frames)).sentences)


def test_rules_are_compared_pair_by_pair():
    frames = study(scalings=("alpha/r", "alpha/sqrt(r)"), seeds=2)
    rule = frames["comparison"]["trial"].map(frames["trials"].set_index("trial")["scaling"])
    shifted = frames["comparison"]["cosine"].where(rule.eq("alpha/r"), 0.9)
    plain = frames["comparison"].loc[rule.eq("alpha/r"), "cosine"].mean()
    found = aligned(frames | {"comparison": frames["comparison"].assign(cosine=shifted)})
    assert found.rules.estimate == pytest.approx(0.9 - plain)
