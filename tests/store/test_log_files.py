"""What readers find in few files is what the log and the trials say; what can't be read changes
nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pretend import TRIALS, create, run
from rankscope.store.log import Log
from rankscope.store.log_files import SNAPSHOT, entry_numbers, read_entries, write_snapshot
from rankscope.store.storage import LocalStorage
from rankscope.store.store import Store
from rankscope.sweep.status import status


class Counting(LocalStorage):
    """Remembers which entries were asked for all at once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched: list[int] = []

    def fetch(self, names: Sequence[str], *, again: bool = False) -> None:
        self.fetched += [] if again else [int(name[4:12]) for name in names]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A finished one, whose log has a snapshot."""
    store = create(tmp_path / "s")
    run(store, size=8)
    numbers = entry_numbers(store.storage)
    entries = [e for e in read_entries(store.storage, numbers, store.id) if isinstance(e, dict)]
    assert len(entries) == 6  # LoRA, two full fine-tunes: each claimed and committed
    write_snapshot(store.storage, store.id, entries)
    return store


def state(store: Store, storage: LocalStorage | None = None) -> dict[str, Any]:
    """What a fresh reader takes from the log."""
    found = Log(storage or store.storage, store.id)
    found.refresh()
    return {k: v for k, v in vars(found).items() if not k.startswith("_") and k != "storage"}


def test_a_snapshot_says_what_the_log_says(store: Store) -> None:
    path, counting = store.path / SNAPSHOT, Counting(store.path)
    with_it = state(store, counting)
    assert counting.fetched == []
    lines = path.read_bytes().splitlines(keepends=True)
    head, *entries = lines
    foreign = json.loads(head) | {"store": "another"}
    for damage in (
        b"".join(lines[:3]),
        b"".join([head, *reversed(entries)]),
        json.dumps(foreign).encode() + b"\n" + b"".join(entries),
        b"".join(entries),  # as older versions wrote it
        b"".join(lines)[:-30],
        b"",
        None,
    ):
        path.unlink() if damage is None else path.write_bytes(damage)
        counting.fetched.clear()
        assert state(store, counting) == with_it
        assert counting.fetched == [1, 2, 3, 4, 5, 6]


def test_a_snapshot_of_another_course_is_none(store: Store) -> None:
    """The log was cut since, and has gone on otherwise."""
    (store.path / "log" / "00000006.json").unlink()
    log = Log(LocalStorage(store.path), store.id)
    log.storage.remove(SNAPSHOT)
    log.forget(store.done_ids()[:1])
    assert log.length == 6
    snapshot = Store(store.path).log
    snapshot.refresh()
    assert snapshot.done.keys() == log.done.keys()


def test_a_snapshot_stands_in_for_lost_entries(store: Store) -> None:
    before = state(store)
    (store.path / "log" / "00000006.json").write_bytes(b"")
    (store.path / "log" / "00000002.json").unlink()
    assert state(store) == before


@pytest.mark.parametrize("lost", [1, 2, 5, 6])
@pytest.mark.parametrize("how", ["empty", "deleted", "another's", "folder"])
def test_a_lost_entry_changes_nothing_else(store: Store, lost: int, how: str) -> None:
    shutil.rmtree(store.path / "cache")
    before = state(store)
    path = store.path / "log" / f"{lost:08d}.json"
    if how == "empty":
        path.write_bytes(b"")
    elif how == "another's":
        path.write_bytes((store.path / "log" / f"{7 - lost:08d}.json").read_bytes())
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
    after = state(store)
    if how == "deleted" and lost == 6:
        assert after["length"] == 5
    else:
        assert after["lost"].keys() == {lost}
        assert after["length"] == 6
    kept = before["done"].keys() - (before["live"] or set())
    missing = {id for id in kept if id not in after["done"]}
    claims = {before["done"][id].claim for id in missing}
    assert claims <= {lost - 1}  # a commit's own trials, and none where a claim is lost
    assert bool(claims) == (lost % 2 == 0)
    assert run(Store(store.path)) == []  # their own records say that they are whole
    assert len(Store(store.path).done_ids()) == len(TRIALS)


def test_other_files_in_the_log_are_none_of_ours(store: Store) -> None:
    before = state(store)
    for name in ("notes.txt", "00000003.json~", "00000003 (copy).json", "abc.json"):
        (store.path / "log" / name).write_text("{}")
    shutil.rmtree(store.path / "cache")
    assert state(store) == before


def test_a_newer_format_stops(store: Store) -> None:
    path = store.path / "log" / "00000003.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    shutil.rmtree(store.path / "cache")
    says = r"00000003.json: expected format 1 .*; found 99.*pip install --upgrade"
    with pytest.raises(ValueError, match=says):
        state(store)


def test_status_opens_no_trial(store: Store) -> None:
    seen = status(Store(store.path))
    assert (seen.done, seen.diverged, seen.seconds_left) == (len(TRIALS), 0, 0)
    gone = store.done_ids()[0]
    shutil.rmtree(store.path / "trials" / gone)
    without = status(Store(store.path))
    assert without.done == len(TRIALS) - 1
    assert without.left_out == {gone: "its folder is missing"}
    assert without.seconds_left == pytest.approx(0.1)  # what the others took
    for path in (store.path / "trials").glob("*/done.json"):
        path.chmod(0o000)  # root reads it all the same; others could not
    assert status(Store(store.path)) == without
    for path in (store.path / "trials").glob("*/done.json"):
        path.chmod(0o644)
    run(Store(store.path))
    assert status(Store(store.path)) == seen
