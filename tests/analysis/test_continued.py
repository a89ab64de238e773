"""H3: trials beside their longer twins, which take no part in anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis.conclusions import conclude
from rankscope.analysis.frames import Frames
from rankscope.report.from_store import _keep, kept
from rankscope.report.page import figures
from rankscope.report.tables import tables
from simulate import study


def longer() -> dict[str, pd.DataFrame]:
    """A study, and its trials at one rate and rank once more: sr(W + dW) a third lower at the
    end, the metric worse by 0.1."""
    frames = study()
    trials, spectra, metrics = frames["trials"], frames["spectra"], frames["metrics"]
    own = trials[
        trials["method"].eq("lora") & trials["rank"].eq(4) & trials["learning_rate"].eq(3e-3)
    ]
    more = own.assign(
        trial="longer " + own["trial"], budget=2.0, last=own["last"] - 0.1, best=own["best"] + 9
    )
    copies = [rows[rows["trial"].isin(own["trial"])] for rows in (spectra, metrics)]
    copies = [rows.assign(trial="longer " + rows["trial"]) for rows in copies]
    moved = copies[0]["matrix"].eq("W+dW")
    copies[0].loc[moved, "stable_rank"] /= 1.5
    together = zip((trials.assign(budget=1.0), spectra, metrics), (more, *copies), strict=True)
    names = ("trials", "spectra", "metrics")
    return frames | {
        name: pd.concat(pair, ignore_index=True) for name, pair in zip(names, together, strict=True)
    }


def test_the_change_is_found_and_said() -> None:
    found = conclude(Frames(**longer()), resamples=60)
    assert len(found.continued.pairs) == 3
    assert found.continued.drift.estimate == pytest.approx(np.log(1.5))
    assert found.continued.last.estimate == pytest.approx(-0.1)
    said = next(v for v in found.verdicts if v.hypothesis == "H3")
    assert any("Trained 2 times as long, 3 trials" in sentence for sentence in said.sentences)
    assert said.numbers["continued_last"] == pytest.approx(-0.1)


def test_longer_trials_choose_nothing() -> None:
    """Their best is 9 too high: any choice among rates or any threshold would show it."""
    with_arm, without = (
        conclude(Frames(**longer()), resamples=60),
        conclude(Frames(**study()), resamples=60),
    )
    pd.testing.assert_frame_equal(with_arm.learning_rates, without.learning_rates)
    said, expected = (found.to_dict()["verdicts"] for found in (with_arm, without))
    for one, other in zip(said, expected, strict=True):
        assert one == other or one["hypothesis"] == "H3"
    assert with_arm.counts == without.counts | {"continued": 3}


def test_the_report_has_a_table_and_a_figure_of_pairs() -> None:
    frames = longer()
    drawn = {f.name: f for f in figures(Frames(**frames), conclude(Frames(**frames), resamples=60))}
    rows = pd.DataFrame(drawn["continued"].spec["datasets"]["rows"])
    assert rows.groupby(["panel", "budget"]).size().nunique() == 1
    assert set(rows["budget"]) == {"1 ×", "2 ×"}
    assert rows["line"].nunique() == 2
    made = {t.name: t for t in tables(Frames(**frames), conclude(Frames(**frames), resamples=60))}
    rows = made["continued"].rows
    assert rows["seeds"].tolist() == [3]
    once, twice = (
        1 + rows["drift_once"] / 100,
        1 + rows["drift"] / 100,
    )  # printed in percent of sr(W)
    assert twice.to_numpy() == pytest.approx(once.to_numpy() / 1.5)
    assert "continued" not in {
        t.name for t in tables(Frames(**study()), conclude(Frames(**study()), resamples=60))
    }


def test_a_report_keeps_longer_trials_too(tmp_path: Path) -> None:
    held = Frames(**longer())
    _keep(held, tmp_path)
    pd.testing.assert_frame_equal(
        kept(tmp_path).continued.reset_index(drop=True), held.continued.reset_index(drop=True)
    )
