"""Verdicts: right on what is known, undecided with a reason on what cannot be known, and never a
crash."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis import Frames, conclude
from rankscope.analysis.drift import condensed, drift
from simulate import Truth, study


def cut(frames, keep):
    trials = frames["trials"][keep(frames["trials"])]
    parts = {
        name: frames[name][frames[name]["trial"].isin(trials["trial"])]
        for name in ("metrics", "spectra", "comparison")
    }
    return {"trials": trials, **parts}


def odd_studies():
    base = study(seeds=1)
    trials, metrics, spectra = base["trials"], base["metrics"], base["spectra"]
    never = trials.assign(status="diverged", best=np.nan, last=np.nan, best_step=0)
    unknown = pd.array([pd.NA] * len(trials), dtype="Int64")
    return {
        "one rank": study(ranks=(8,), seeds=1),
        "one of everything": study(ranks=(8,), seeds=1, rates=(1e-3,), full=False),
        "no full fine-tuning": study(full=False, seeds=1),
        "no LoRA": cut(base, lambda t: t["method"].eq("full")),
        "one learning rate": study(rates=(1e-3,)),
        "one layer": study(layers=("x.query",), seeds=1),
        "one evaluation": study(evaluations=1, seeds=1),
        "one trial": cut(base, lambda t: t["trial"].eq("t00000")),
        "no frames at all": {name: pd.DataFrame() for name in base},
        "no rows": {name: frame.iloc[:0] for name, frame in base.items()},
        "no spectra": base | {"spectra": spectra.iloc[:0]},
        "no metrics": base | {"metrics": metrics.iloc[:0]},
        "no comparison": base | {"comparison": pd.DataFrame()},
        "all diverged": base
        | {
            "trials": never,
            "metrics": metrics.assign(metric_value=np.nan),
            "spectra": spectra.assign(stable_rank=np.nan),
            "comparison": pd.DataFrame(),
        },
        "infinite metric": base | {"metrics": metrics.assign(metric_value=np.inf)},
        "constant metric": base | {"metrics": metrics.assign(metric_value=0.5)},
        "no drift": base
        | {
            "spectra": spectra.assign(
                stable_rank=spectra["stable_rank"].where(spectra["matrix"].eq("dW"), 9.0)
            )
        },
        "unknown best step": base | {"trials": trials.assign(best_step=unknown)},
        "columns of objects": {name: frame.astype(object) for name, frame in base.items()},
    }


ODD = odd_studies()


UNDECIDED = {
    "one rank": {"H1"},
    "no full fine-tuning": {"H4"},
    "no LoRA": {"H1", "H2", "H3", "H4"},
    "one trial": {"H1", "H2", "H3", "H4"},
    "no frames at all": {"H1", "H2", "H3", "H4"},
    "all diverged": {"H1", "H2", "H3", "H4"},
    "no metrics": {"H2", "H3"},
    "no comparison": {"H4"},
    "one layer": {"H1", "H4"},
    "constant metric": {"H2"},
}
# their spectra are those of others
AS_OTHERS = ("no metrics", "infinite metric", "constant metric", "no comparison")


@pytest.mark.parametrize("name", ODD)
def test_odd_studies_get_an_answer(name):
    """What cannot be known is undecided; condensed spectra say the same."""
    found = conclude(Frames(**ODD[name]), resamples=60)
    assert [v.hypothesis for v in found.verdicts] == ["H1", "H2", "H3", "H4", "H5"]
    for verdict in found.verdicts:
        assert verdict.verdict in {"supported", "contradicted", "undecided"}
        assert verdict.sentences
        assert "nan" not in " ".join(verdict.sentences).lower()
    json.dumps(found.to_dict(), allow_nan=False)
    undecided = {v.hypothesis for v in found.verdicts if v.verdict == "undecided"}
    assert UNDECIDED.get(name, set()) <= undecided
    if name not in AS_OTHERS:
        short = conclude(Frames(**shortened(ODD[name])), resamples=60)
        assert json.dumps(short.to_dict()) == json.dumps(found.to_dict())


def shortened(frames):
    """With spectra condensed trial by trial, and the drifts as a store keeps them."""
    spectra = frames["spectra"]
    parts = [part for _, part in spectra.groupby("trial")] if len(spectra) else []
    short = [spectra.iloc[:0], *(condensed(frames["trials"], part) for part in parts)]
    drifts = {"drifts": pd.concat(map(drift, parts), ignore_index=True)} if parts else {}
    return frames | {"spectra": pd.concat(short)} | drifts


def test_condensed_spectra_say_the_same():
    """What was not looked at is not missed."""
    frames = study(seeds=2, scalings=("alpha/r", "alpha/sqrt(r)"))
    shorter = shortened(frames)
    assert len(shorter["spectra"]) < len(frames["spectra"])
    whole, short = (conclude(Frames(**tables), resamples=40) for tables in (frames, shorter))
    assert json.dumps(short.to_dict()) == json.dumps(whole.to_dict())


def verdicts(truth: Truth, **options):
    found = conclude(Frames(**study(truth, **options)), resamples=200)
    return {v.hypothesis: v for v in found.verdicts}


def test_the_hypotheses_are_supported_where_they_hold():
    truth = Truth(noise=0.004, threshold=0.8, decline=0.4, cosine=0.0)
    found = verdicts(truth, evaluations=20, ranks=(1, 4, 16, 64))
    assert {name: v.verdict for name, v in found.items() if name != "H5"} == dict.fromkeys(
        ("H1", "H2", "H3", "H4"), "supported"
    )
    assert found["H1"].numbers["b"] == pytest.approx(0.25, abs=0.05)


def test_the_hypotheses_are_contradicted_where_they_are_false():
    truth = Truth(b=0.95, threshold=None, noise=0.003, cosine=0.5)
    found = verdicts(truth, evaluations=8)
    assert found["H1"].verdict == "contradicted"
    assert found["H2"].verdict == "contradicted"
    assert found["H3"].verdict == "undecided"
    assert found["H4"].verdict == "contradicted"


def test_low_ranks_do_not_speak_for_high_ones():
    assert verdicts(Truth(), ranks=(1, 2, 4))["H4"].verdict == "undecided"


def test_the_answer_depends_on_the_seed_only():
    frames = study(seeds=1)
    one, same, other = (
        conclude(Frames(**frames), seed=s, resamples=80).to_dict() for s in (0, 0, 1)
    )
    assert json.dumps(one) == json.dumps(same)
    assert json.dumps(one) != json.dumps(other)


def test_few_seeds_edges_and_rules_are_said():
    found = conclude(Frames(**study(seeds=1, rates=(1e-3,))), resamples=60)
    said = " ".join(found.caveats)
    assert "one seed" in said
    assert "only one tried" in said
    assert "alpha/r shrinks" in said
    several = conclude(Frames(**study(scalings=("alpha/r", "alpha/sqrt(r)"))), resamples=60)
    assert "alpha/r shrinks" not in " ".join(several.caveats)
    assert any("alpha/sqrt(r)" in s for v in several.verdicts for s in v.sentences)


def test_drifts_of_an_older_version_are_read():
    """Their column ``drift`` is the logarithm; ``rho`` is missing."""
    frames = study(seeds=1)
    older = drift(frames["spectra"]).rename(columns={"log_drift": "drift"}).drop(columns="rho")
    new, old = (
        conclude(Frames(**frames, **more), resamples=40) for more in ({}, {"drifts": older})
    )
    assert json.dumps(old.to_dict()) == json.dumps(new.to_dict())


def test_where_both_names_of_a_drift_stand_the_logarithm_is_read():
    frames = study(seeds=1)
    now = drift(frames["spectra"])
    both = Frames(**frames, drifts=now.assign(drift=99.0))
    pd.testing.assert_series_equal(both.drifts["log_drift"], now["log_drift"])


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["before training"] * 2, "of the pretrained model's."),
        (["before training", None], "of a constant answer, or the pretrained model's."),
        ([None, None], "of a constant answer."),
    ],
)
def test_what_a_gain_is_measured_from_is_said(sources, said):
    nothing = Truth(plateau=0.5, floor=0.5, noise=0.01)
    frames = study(nothing, tasks=("a", "b"), seeds=2)
    trials = frames["trials"].assign(constant=0.5)
    start = dict(zip(("a", "b"), sources, strict=True))
    known = trials["task"].map(start).notna()
    trials = trials.assign(untrained=np.where(known, 0.5, np.nan))
    trials = trials.assign(constant=trials["constant"].where(~known))
    found = conclude(Frames(**frames | {"trials": trials}), resamples=20)
    assert any(said in caveat for caveat in found.caveats), found.caveats


def test_thresholds_of_many_tasks_are_counted_in_the_headline():
    frames = study(Truth(decline=0.4, noise=0.01), tasks=tuple("abcd"), seeds=2)
    said = conclude(Frames(**frames), resamples=60).verdicts[1].sentences[0]
    assert "is lost past a drift on 4 of 4 tasks" in said


def test_conclusions_as_frames():
    found = conclude(Frames(**study(seeds=2)), resamples=40)
    assert found.to_frame()["hypothesis"].tolist() == ["H1", "H2", "H3", "H4", "H5"]
    row = found.threshold.to_frame().iloc[0]
    assert row["half"] == found.threshold.half.estimate
    assert row["stable_rank"] == pytest.approx(row["base"] * np.exp(-row["half"]))
    several = conclude(Frames(**study(tasks=("one", "two"), seeds=1)), resamples=40)
    assert len(several.thresholds_frame()) == 2
    with pytest.raises(ValueError, match="found small/one, small/two"):
        _ = several.threshold
