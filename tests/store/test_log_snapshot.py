"""What readers find in few files is what the log and the trials say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pretend import TRIALS, create, run
from rankscope.store import log, log_snapshot
from rankscope.store.log import Log
from rankscope.store.log_snapshot import SNAPSHOT
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.sweep.status import status


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A finished one, whose log has a snapshot."""
    for place in (log, log_snapshot):
        monkeypatch.setattr(place, "is_worth_it", lambda known, length: length >= known + 2)
    store = create(tmp_path / "s")
    run(store, size=8)
    return store


def state(store: Store) -> dict[str, Any]:
    """What a fresh reader takes from the log."""
    found = Log(store.storage)
    found.refresh()
    return {k: v for k, v in vars(found).items() if not k.startswith("_") and k != "storage"}


def test_a_transcript_says_what_the_log_says(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = store.path / SNAPSHOT, []
    assert len(path.read_text().splitlines()) == 6  # LoRA, two full fine-tunes: each claimed and committed
    real = log.entries
    monkeypatch.setattr(
        log, "entries", lambda storage, numbers: opened.extend(numbers) or real(storage, numbers)
    )
    with_it = state(store)
    assert opened == []
    lines = path.read_bytes().splitlines(keepends=True)
    foreign = json.loads(lines[3]) | {"nonce": "another store's"}
    for damage in (
        b"".join(lines[:2]),
        b"".join(lines[:3]) + json.dumps(foreign).encode() + b"\n",
        b"".join(lines)[:-30],
        b"",
        None,
    ):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert state(store) == with_it
    assert opened == [3, 4, 5, 6] + 4 * [1, 2, 3, 4, 5, 6]


def test_status_opens_no_trial(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = status(Store(store.path))
    assert (seen.done, seen.diverged, seen.seconds_left) == (len(TRIALS), 0, 0)
    gone = store.done_ids()[0]
    shutil.rmtree(store.path / "trials" / gone)
    without = status(Store(store.path))
    assert without.done == len(TRIALS) - 1
    assert without.seconds_left == pytest.approx(0.1)  # what the others took
    with monkeypatch.context() as patch:

        def refused(*_: object) -> None:
            raise AssertionError("a trial was opened")

        patch.setattr(TrialDir, "result", refused)
        assert status(Store(store.path)) == without
    for entry in (store.path / "log").iterdir():  # as they were before commits said results
        said = json.loads(entry.read_text())
        said.pop("results", None)
        entry.write_text(json.dumps(said))
    shutil.rmtree(store.path / "cache")
    assert status(Store(store.path)) == without
    run(Store(store.path))
    assert status(Store(store.path)) == seen
