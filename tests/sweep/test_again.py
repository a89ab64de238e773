"""A trial that is trained again is trained with those that it was trained with first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pretend
from pretend import create, run
from rankscope.store.trial_dir import TrialDir
from rankscope.study.trial import Trial


def recorded(
    path: Path, size: int = 3, lose: Sequence[str] = ()
) -> tuple[list[list[str]], list[str]]:
    """Harms these trials and trains what is missing. -> what each call trained, and all that was
    committed"""
    calls: list[list[str]] = []

    def train(
        trials: Sequence[Trial],
        folders: Sequence[TrialDir],
        progress: Callable[[int], None],
        *,
        scratch: Path,
    ) -> None:
        calls.append([trial.id for trial in trials])
        pretend.pretend(trials, folders, progress, scratch=scratch)

    for id in lose:
        shutil.rmtree(path / "trials" / id)
    store = create(path)
    store.recover(thorough=True)
    return calls, run(store, train=train, size=size)


def test_with_those_it_was_trained_with(tmp_path: Path) -> None:
    first, trained = recorded(tmp_path)
    assert [len(pack) for pack in first] == [3, 3, 1, 1]  # full fine-tunes alone
    every = [id for pack in first for id in pack]
    assert trained == every
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trials/*/done.json")}
    for again in range(2):  # what it was first trained with counts, also after it was again
        calls, trained = recorded(tmp_path, lose=first[1][1:2])
        assert calls == first[1:2]
        assert trained == first[1][1:2]
        kept = {path: s for path, s in stamps.items() if path.parent.name != trained[0]}
        assert {path: path.stat().st_mtime_ns for path in kept} == kept, again
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == sorted(every)
    assert not list((tmp_path / "work").iterdir())


def test_of_two_packs_each_with_its_own(tmp_path: Path) -> None:
    first, _ = recorded(tmp_path)
    calls, trained = recorded(tmp_path, lose=[first[0][0], first[1][2], first[1][0]])
    assert calls == first[:2]
    assert trained == [first[0][0], first[1][0], first[1][2]]


def test_without_room_for_them_alone(tmp_path: Path) -> None:
    first, _ = recorded(tmp_path)
    calls, trained = recorded(tmp_path, size=2, lose=[first[0][1]])
    assert calls == [trained] == [[first[0][1]]]


def test_whose_commit_was_lost(tmp_path: Path) -> None:
    """The trials' own records say whose claim they were of."""
    first, _ = recorded(tmp_path)
    shutil.rmtree(tmp_path / "log")
    assert recorded(tmp_path) == ([], [])
    assert recorded(tmp_path, lose=[first[0][2]]) == (first[:1], [first[0][2]])


def test_the_steps_of_others_are_not_counted(tmp_path: Path) -> None:
    first, _ = recorded(tmp_path)
    shutil.rmtree(tmp_path / "trials" / first[0][0])
    store = create(tmp_path)
    store.recover(thorough=True)
    told: list[int] = []

    def train(trials, folders, progress, *, scratch):  # type: ignore[no-untyped-def]
        for _ in range(4):
            progress(len(trials))
        pretend.pretend(trials, folders, lambda steps: None, scratch=scratch)

    worker = pretend.Worker(
        store,
        store.packs(size=3),
        train,
        retries=1,
        provenance=pretend.PROVENANCE,
        progress=lambda pack, steps: told.append(steps),
    )
    worker.run()
    assert told == [1, 1, 1, 1]
    claims = [json.loads(p.read_text()) for p in sorted((tmp_path / "log").glob("*.json"))]
    (last,) = [entry for entry in claims if entry.get("beside")]
    assert (last["trials"], last["beside"]) == (first[0][:1], first[0])
