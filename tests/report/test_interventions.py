"""The table and the figure of edited trials."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import vl_convert

from pretend import edit, sweep
from rankscope.analysis.verdicts.verdict import answer
from rankscope.report.from_store import write_report
from rankscope.report.interventions import interventions_table, paths_figure
from rankscope.store.store import Store

LINE = {
    "family": "restore", "level": 0.0, "trials": 3, "ratio": 1.0, "rho": 0.9, "metric": 0.6,
    "change": 0.1, "change_low": -0.05, "change_high": 0.25, "change_clusters": "3 trials",
}  # fmt: skip


@pytest.mark.parametrize("edited", [True, False])
def test_one_row_for_each_edit_of_each_group(edited: bool) -> None:
    one: dict[str, Any] = {"model": "m", "task": "t", "changes_collapsed_own": [LINE]}
    verdicts = [answer("H6", "undecided", [], {"interventions": [one]})] if edited else []
    found = interventions_table(SimpleNamespace(verdicts=verdicts))  # type: ignore[arg-type]
    assert len(found.rows) == int(edited)
    if edited:
        assert [text for text, _ in found.cells()[0]] == [
            "t", "collapsed", "own", "restore", "0", "3", "1.000", "0.90", "0.600",
            "+0.100 [−0.050, +0.250]",
        ]  # fmt: skip
        assert "restore" in found.to_latex()


def test_a_line_for_each_edited_trial_over_the_cloud() -> None:
    trials = [
        {"trial": f"t{i}", "model": "m", "task": "T", "method": "lora", "rank": 2,
         "scaling": "alpha/r", "learning_rate": 10.0**-i, "seed": 0}
        for i in (2, 3)
    ]  # fmt: skip
    labels = pd.DataFrame(trials)
    cloud = labels.assign(metric_value=[0.5, 0.8], log_drift=[-2.0, -0.1])
    edited = pd.DataFrame(
        [
            {"trial": t, "family": "scale", "scope": "all", "level": level, "value": 0.7,
             "log_drift": -0.1 * level}
            for t in ("t2", "t3")
            for level in (0.5, 1.0, 2.0)
        ]
    )  # fmt: skip
    metrics = labels.assign(metric="accuracy", greater_is_better=True)
    frames: Any = SimpleNamespace(
        interventions=edited, all_trials=labels, checkpoints=cloud, trials=metrics
    )
    figure = paths_figure(frames, SimpleNamespace())  # type: ignore[arg-type]
    assert figure is not None
    assert vl_convert.vegalite_to_svg(figure.spec).startswith("<svg")
    frames.interventions = edited.iloc[:0]
    assert paths_figure(frames, SimpleNamespace()) is None  # type: ignore[arg-type]


def test_edits_that_say_nothing_of_drift(tmp_path: Path) -> None:
    """A trial whose edits are not those that H6 asks for is drawn nowhere, and stops no report."""
    sweep(tmp_path / "s")
    edit(Store(tmp_path / "s"))
    assert "rankscope" in write_report(tmp_path / "s")[0].read_text(encoding="utf-8")
