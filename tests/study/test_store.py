"""The store: nothing half-written is a result, nothing finished is lost or trained twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from rankscope.study.execution import execute, missing
from rankscope.study.files import read_json, write_json
from rankscope.study.folder import TrialFolder
from rankscope.study.plan import Study, Trial
from rankscope.study.store import Store

TEXT = """
name = "t"
[scientific]
model = "m"
task = "RTE"
rank = [1, 2, 4]
[nuisance]
learning_rate = [1e-4, 1e-3]
[fixed]
epochs = 1
"""
STUDY = Study.parse(TEXT)
WIDTH = {"m": 8}
TRIALS = STUDY.trials(WIDTH)


def create(path: Path, study: Study = STUDY, **fingerprints: str) -> Store:
    return Store.create(path, study, largest_rank=WIDTH, fingerprints=fingerprints or {"data/RTE": "a"})


def spectra() -> pd.DataFrame:
    return pd.DataFrame({"step": [0], "layer": ["x"], "matrix": ["W"], "stable_rank": [2.0]})


def pretend(trials: Sequence[Trial], folders: Sequence[TrialFolder], progress: Callable[[int], None]) -> None:
    """Trains nothing, writes what training writes."""
    for trial, folder in zip(trials, folders, strict=True):
        folder.log(step=1, epoch=1.0, train_loss=0.5, eval_loss=float("nan"), accuracy=0.75)
        folder.write_spectra(spectra())
        best = trial.learning_rate
        folder.finish(
            status="done",
            metric="accuracy",
            best=best,
            best_step=1,
            last=best,
            steps=1,
            diverged_at=None,
            seconds=0.1,
        )
        progress(1)


def run(store: Store, train: Callable[..., None] = pretend, size: int = 2) -> list[str]:
    return execute(store, TRIALS, train, pack_size=size, provenance={}).trained


def test_all_trials_become_frames(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    assert len(run(store)) == len(TRIALS) == len(store.trials()) == len(store.spectra())
    metrics = store.metrics()
    assert (metrics["metric_value"] == 0.75).all()
    assert metrics["eval_loss"].isna().all()  # not a number is null in the file
    assert [t.id for t in store.planned()] == [t.id for t in TRIALS]


def test_nothing_is_trained_twice(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    run(store)
    before = store.hash()
    assert run(Store(store.path)) == []
    assert Store(store.path).hash() == before


class Killed(BaseException):
    """What kill -9 is to the code that it interrupts: nothing catches it."""


@pytest.mark.parametrize("after", range(6))
def test_killed_anywhere_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Dies at the after-th rename (each json file is one), then runs again: equal to a run that was left alone."""
    store, calls = create(tmp_path / "s"), 0
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(Killed):
        run(store)
    monkeypatch.setattr(Path, "replace", replace)
    finished = {folder.path.name for folder in store.done()}
    trained = run(Store(store.path))
    assert not finished & set(trained)
    undisturbed = create(tmp_path / "u")
    run(undisturbed)
    assert store.hash() == undisturbed.hash()
    pd.testing.assert_frame_equal(store.metrics(), undisturbed.metrics())


def test_a_failing_pack_does_not_stop_the_others(tmp_path: Path) -> None:
    def sometimes(
        trials: Sequence[Trial], folders: Sequence[TrialFolder], progress: Callable[[int], None]
    ) -> None:
        if any(t.rank == 2 for t in trials):
            raise RuntimeError("no luck")
        pretend(trials, folders, progress)

    store = create(tmp_path / "s")
    trained = run(store, sometimes, size=1)
    failed = [t for t in TRIALS if t.rank == 2]
    assert len(trained) == len(TRIALS) - len(failed)
    assert {store.folder(t.id).failure for t in failed} == {"RuntimeError: no luck"}
    assert [t.id for t in missing(store, TRIALS)] == [t.id for t in failed]
    run(store)
    assert store.folder(failed[0].id).failure is None


def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(create(tmp_path / "s"), full)


def test_a_study_may_grow(tmp_path: Path) -> None:
    run(create(tmp_path / "s"))
    grown = Study.parse(TEXT.replace("[1, 2, 4]", "[1, 2, 4, 8]"))
    store = create(tmp_path / "s", grown, **{"data/RTE": "a"})
    assert len(missing(store, grown.trials(WIDTH))) == 2
    assert "8" in store.study_text


@pytest.mark.parametrize(
    ("study", "fingerprints", "says"),
    [
        (Study.parse(TEXT.replace('"t"', '"u"')), {"data/RTE": "a"}, "holds study 't'; found study 'u'"),
        (
            Study.parse(TEXT.replace("epochs = 1", "epochs = 2")),
            {"data/RTE": "a"},
            "begun with epochs = 1.0; found 2.0",
        ),
        (STUDY, {"data/RTE": "b"}, "data RTE has changed since this store was begun"),
    ],
)
def test_another_study_is_refused(
    tmp_path: Path, study: Study, fingerprints: dict[str, str], says: str
) -> None:
    create(tmp_path / "s")
    before = (tmp_path / "s" / "store.json").read_bytes()
    with pytest.raises(ValueError, match=says):
        create(tmp_path / "s", study, **fingerprints)
    assert (tmp_path / "s" / "store.json").read_bytes() == before


def test_a_folder_of_other_things_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="found other files"):
        create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_store_says_how_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="rankscope run STUDY --store"):
        Store(tmp_path)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    with store.writing():
        assert store.is_being_written
        with pytest.raises(BlockingIOError, match="another run is writing"):
            run(Store(store.path))
    assert not store.is_being_written


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    (tmp_path / "a.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"format 99.*pip install --upgrade rankscope"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"format"')
    with pytest.raises(ValueError, match="found damage"):
        read_json(tmp_path / "a.json")
