"""`rankscope suggest`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankscope.cli import main
from rankscope.report.from_store import KEPT, open_frames
from rankscope.report.suggested import suggest

DATA = Path(__file__).parents[1] / "docs" / "results" / "causal-lm" / "data"


def test_json_and_words_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The tables of a real study: the means by hand, from its trials."""
    assert main(["suggest", str(DATA), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["suggestions"]
    trials = open_frames(DATA).trials.query("method == 'lora'")
    means = trials.groupby(["rank", "learning_rate"])["best"].mean()
    for row in one["ranks"]:
        assert row["value"] == pytest.approx(means[row["rank"]].min())
        assert row["learning_rate"] == means[row["rank"]].idxmin()
    best = min(row["value"] for row in one["ranks"])
    (row,) = (row for row in one["ranks"] if row["rank"] == one["rank"])
    assert row["value"] - best < 0.01
    assert one["at_most"] == row["at_most"] <= 0.01
    assert main(["suggest", str(DATA)]) == 0
    said = capsys.readouterr().out
    assert f"rank {one['rank']} at {one['learning_rate']:g}: {one['reason']}" in said
    (found,) = suggest(DATA)
    without = {"rank_pattern": None, "validation": None}
    without["no_rank_pattern"] = "the folder data beside a report has no weights"
    assert json.loads(json.dumps(found.to_dict())) | without == one


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--margin", "0"], "expected a positive number"),
        (["--margin", "nan"], "expected a positive number"),
        (["--task", "none"], "expected one of"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["suggest", str(DATA), *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_no_store_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["suggest", str(tmp_path / KEPT[0])]) == 2
    assert "expected a store" in capsys.readouterr().err
