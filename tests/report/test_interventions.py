"""The table of edited trials."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rankscope.analysis.verdicts.verdict import answer
from rankscope.report.interventions import interventions_table

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
            "m", "t", "collapsed", "own", "restore", "0", "3", "1.000", "0.90", "0.600", "+0.100",
            "−0.050", "+0.250",
        ]  # fmt: skip
        assert "restore" in found.to_latex()
