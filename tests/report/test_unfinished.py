"""What a store lacks stands in its conclusions and on its page, and stays in the tables that are
kept beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rankscope as rs
from pretend import TEXT, sweep


@pytest.fixture
def store(tmp_path: Path) -> rs.Store:
    """Six trials, finished."""
    study = rs.Study.parse(
        TEXT.replace("rank = [1, 2, 4]", "rank = [1, 2]\nmethod = ['full', 'lora']")
    )
    sweep(tmp_path / "store", study)
    return rs.Store(tmp_path / "store")


def said(place: rs.Store | Path) -> list[str]:
    return [caveat for caveat in rs.analyze(place).caveats if "trials are here" in caveat]


def test_a_whole_store_says_nothing_of_it(store: rs.Store) -> None:
    assert said(store) == []


def test_harmed_trials_are_counted_where_conclusions_are_drawn(store: rs.Store) -> None:
    (store.path / "trials" / store.done_ids()[0] / "done.json").write_text("")
    pages = [path for path in rs.write_report(store) if path.name == "report.html"]
    (caveat,) = said(store)
    assert caveat.startswith("5 of 6 trials are here: the others have not finished or are harmed")
    assert "5 of 6 trials" in pages[0].read_text(encoding="utf-8")
    assert said(store.path / "data") == [caveat]


def test_a_count_that_is_no_number_is_one_line(store: rs.Store) -> None:
    rs.write_report(store)
    path = store.path / "data" / "report.json"
    kept = json.loads(path.read_text())
    kept["provenance"]["missing"] = "<b>many"
    path.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="expected JSON with study_text and provenance"):
        rs.analyze(store.path / "data")
