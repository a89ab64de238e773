"""Trials of unlike settings: every estimate is what each setting alone gives, and the comparison of
settings what is counted by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from scipy import stats

from rankscope.analysis.conclusions import conclude
from rankscope.analysis.frames import Frames
from rankscope.analysis.settings import by_setting, compared, labelled
from simulate import Truth, study

SMALL = {"ranks": (4, 16), "rates": (1e-4, 1e-3, 1e-2), "evaluations": 4}


def of(setting: str, name: str, truth: Truth, *, full: bool = True) -> dict[str, pd.DataFrame]:
    """A simulated study all of whose trials have that setting; ids begin with ``name``."""
    tables = study(truth, seed=len(setting), full=full, **SMALL)
    named = {
        key: table.assign(
            **{c: name + table[c] for c in ("trial", "reference") if c in table.columns}
        )
        for key, table in tables.items()
    }
    return named | {"trials": named["trials"].assign(setting=setting)}


def together(*studies: dict[str, pd.DataFrame]) -> Frames:
    keys = ("trials", "metrics", "spectra", "comparison")
    return Frames(**{k: pd.concat([s[k] for s in studies], ignore_index=True) for k in keys})


def test_each_setting_is_answered_as_if_it_were_alone() -> None:
    plain = of("", "a", Truth(c=1.0))
    muon = of("optimizer=muon", "b", Truth(c=5.0, threshold=None))
    frames = together(plain, muon)
    found = conclude(frames, resamples=50)
    label = "small (optimizer=muon)"
    assert {t.model for t in found.thresholds} == {"small", label}
    for model, tables in (("small", plain), (label, muon)):
        alone = conclude(
            Frames(**(tables | {"trials": tables["trials"].assign(setting="")})), resamples=50
        )
        ours = found.growth.points[found.growth.points["model"].eq(model)]
        theirs = alone.growth.points.assign(model=model)
        assert_frame_equal(ours.reset_index(drop=True), theirs, check_like=True)
        exact = ["task", "measure", "rank", "same_seed", "mean"]
        pairs = found.alignment.by_rank[found.alignment.by_rank["model"].eq(model)]
        assert_frame_equal(
            pairs[exact].reset_index(drop=True), alone.alignment.by_rank[exact], check_like=True
        )
        rates = found.learning_rates[found.learning_rates["model"].eq(model)]
        assert_frame_equal(
            rates.drop(columns="model").reset_index(drop=True),
            alone.learning_rates.drop(columns="model"),
        )
    for verdict in found.verdicts:  # two numbers of one task are told apart by the setting
        if verdict.hypothesis in ("H1", "H5"):
            assert "(small, optimizer=muon" in " ".join(verdict.sentences)
    assert found.counts["models"] == 1
    assert found.counts["trials"] == len(frames.trials)


def test_without_the_setting_they_would_be_pooled() -> None:
    """The hazard: the same trials under one name give one growth, of both."""
    both = together(of("", "a", Truth(c=1.0)), of("optimizer=muon", "b", Truth(c=5.0)))
    pooled = Frames(both.trials.assign(setting=""), both.metrics, both.spectra, both.comparison)
    assert len(conclude(pooled, resamples=20).growth.groups["model"].unique()) == 1
    assert len(conclude(both, resamples=20).growth.groups["model"].unique()) == 2


def test_one_full_fine_tune_stands_beside_every_setting_of_the_factors() -> None:
    plain = of("", "a", Truth())
    plus = of("lora_plus_ratio=4", "b", Truth(), full=False)
    full = plain["trials"].loc[plain["trials"]["method"].eq("full"), "trial"]
    pairs = plus["trials"].loc[plus["trials"]["method"].eq("lora"), "trial"].to_frame()
    pairs = pairs.merge(full.rename("reference"), how="cross").assign(layer="l", cosine=0.5)
    plus["comparison"] = pairs
    muon = of("optimizer=muon", "c", Truth(), full=False)
    frames = by_setting(together(plain, plus, muon))
    named = frames.trials[frames.trials["method"].eq("full")].groupby("model")["trial"]
    assert named.size().to_dict() == {"small": len(full), "small (lora_plus_ratio=4)": len(full)}
    assert frames.trials["trial"].is_unique
    models = frames.trials.set_index("trial")["model"]
    beside = frames.comparison
    assert (beside["trial"].map(models) == beside["reference"].map(models)).all()
    counted = beside["trial"].map(models).value_counts()
    assert counted["small (lora_plus_ratio=4)"] >= len(pairs)  # and those of full fine-tunes
    for table in (frames.metrics, frames.spectra, frames.drifts):
        rows = table["trial"].map(models).value_counts()
        assert rows["small"] == rows["small (lora_plus_ratio=4)"] > rows["small (optimizer=muon)"]
    assert by_setting(frames) is frames
    source = labelled(together(plain, plus, muon).trials)
    assert set(source["source"]) == {*plain["trials"]["trial"], *plus["trials"]["trial"],
                                     *muon["trials"]["trial"]}  # fmt: skip


def test_one_setting_changes_no_name() -> None:
    alone = together(of("optimizer=muon", "a", Truth()))
    assert by_setting(alone) is alone
    with pytest.raises(ValueError, match="found one"):
        compared(alone)


def test_the_comparison_is_paired_by_seed() -> None:
    """By hand: geometric means over layers, differences of logarithms, a t interval of three."""
    frames = together(of("", "a", Truth(c=1.0)), of("optimizer=muon", "b", Truth(c=5.0)))
    table = compared(frames)
    row = table[table["setting"].eq("optimizer=muon") & table["rank"].eq(16)].iloc[0]
    logs = {}
    apart = by_setting(frames)
    for model, part in apart.chosen[apart.chosen["rank"].eq(16)].groupby("model"):
        for trial, seed, step in part[["trial", "seed", "best_step"]].itertuples(index=False):
            rows = frames.spectra[
                frames.spectra["trial"].eq(trial) & frames.spectra["step"].eq(step)
            ]
            sr = rows.loc[rows["matrix"].eq("dW"), "stable_rank"].astype(float)
            logs[model, seed] = np.log(sr).mean()
    change = np.array([logs["small (optimizer=muon)", s] - logs["small", s] for s in range(3)])
    reach = stats.t.ppf(0.975, 2) * change.std(ddof=1) / np.sqrt(3)
    expected = np.exp([change.mean(), change.mean() - reach, change.mean() + reach])
    found = row[["ratio", "ratio_low", "ratio_high"]].to_numpy(float)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert row["against"] == ""
    assert 4 < row["ratio"] < 6
    assert table.loc[table["setting"].eq(""), "ratio"].isna().all()
