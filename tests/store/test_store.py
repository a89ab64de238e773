"""The store: nothing half-written is a result, nothing finished is lost or trained twice."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pretend import STUDY, TEXT, TRIALS, WIDTH, create, pretend, run, spectra
from rankscope.store.files import read_json, write_json
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.worker import Worker, missing


def test_all_trials_become_frames(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    assert len(run(store)) == len(TRIALS) == len(store.trials())
    assert len(store.spectra()) == len(TRIALS) * len(spectra())
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


TROUBLE = [Killed(), OSError(28, "No space left on device"), OSError(30, "Read-only file system")]


@pytest.mark.parametrize("trouble", TROUBLE, ids=["killed", "disk full", "read-only"])
@pytest.mark.parametrize("what", ["link", "rename", "replace", "fsync", "open"])
@pytest.mark.parametrize("after", [0, 2, 5])
def test_stopped_anywhere_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, after: int, trouble: BaseException
) -> None:
    """From the after-th call that makes something lasting on, every one fails. Then all is well
    again, and what comes out equals a run that was left alone."""
    store, calls = create(tmp_path / "s"), 0
    place = Path if what == "open" else os
    real = getattr(place, what)

    def failing(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        writes = what != "open" or "r" not in str(arguments[1:2])
        if writes and threading.current_thread() is threading.main_thread():
            calls += 1
            if calls > after:
                raise trouble
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(place, what, failing)
        with pytest.raises(type(trouble)):
            run(store)
    finished = set(store.done_ids())
    trained = run(Store(store.path))
    assert not finished & set(trained)
    undisturbed = create(tmp_path / "u")
    run(undisturbed)
    assert store.hash() == undisturbed.hash()
    pd.testing.assert_frame_equal(store.metrics(), undisturbed.metrics())
    assert not store.log.failures  # that was not the trials' fault
    assert not any(path.name.startswith(".") for path in (store.path / "trials").rglob("*"))


def tables(store: Store) -> list[pd.DataFrame]:
    return [store.trials(), store.metrics(), store.spectra()]


def assert_same_tables(found: Store, wanted: list[pd.DataFrame]) -> None:
    for frame, other in zip(tables(found), wanted, strict=True):
        pd.testing.assert_frame_equal(frame, other, check_exact=True)


def test_a_store_whose_tables_cannot_be_kept_can_be_read(tmp_path: Path) -> None:
    """As one on a read-only disk (tables.py)."""
    store = create(tmp_path / "s")
    run(store)
    whole = tables(store)
    shutil.rmtree(store.path / "cache")
    (store.path / "cache").write_text("a file, where a folder would be made")
    assert_same_tables(Store(store.path), whole)
    (store.path / "cache").unlink()
    assert_same_tables(Store(store.path), whole)
    assert list(store.path.glob("cache/packs/*"))


def test_tables_are_what_the_trials_say(tmp_path: Path) -> None:
    """With every pack's table, without, and where they are damaged or were made for other files."""
    store = create(tmp_path / "s")
    run(store)
    whole, packs = tables(store), sorted(store.path.glob("cache/packs/*.parquet"))
    assert len(packs) == len({store.log.done[id].claim for id in store.done_ids()})
    shutil.rmtree(store.path / "cache")
    assert_same_tables(store, whole)  # made by the reader
    assert_same_tables(store, whole)  # and read
    gone = store.done_ids()[3]
    shutil.rmtree(store.path / "trials" / gone)
    assert all(set(frame["trial"]) == set(store.done_ids()) - {gone} for frame in tables(store))
    assert run(Store(store.path)) == [gone]  # deleted: missing
    assert_same_tables(Store(store.path), whole)
    for path in (store.path / "cache").rglob("*.parquet"):
        path.write_bytes(b"damaged")
    assert_same_tables(Store(store.path), whole)


def test_a_trial_that_was_trained_again_is_read_afresh(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    run(store)
    before = tables(store)
    again = store.done_ids()[0]
    shutil.rmtree(store.path / "trials" / again)

    def otherwise(
        trials: Sequence[Trial], folders: Sequence[TrialDir], *rest: Any, **more: Any
    ) -> None:
        pretend(trials, folders, *rest, **more)
        for folder in folders:
            folder.log(step=2, epoch=2.0, train_loss=0.4, eval_loss=0.3, accuracy=0.875)
            folder.write_spectra(pd.concat([spectra(), spectra().assign(step=2, stable_rank=3.0)]))
            folder.finish(**folder.result() | {"best": 0.875})

    for path in (store.path / "cache").rglob("*.parquet"):
        path.unlink()  # as in a store of an older version, whose tables readers make
    assert_same_tables(
        store, [frame[frame["trial"] != again].reset_index(drop=True) for frame in before]
    )
    assert run(Store(store.path), otherwise) == [again]
    trials, metrics, found = tables(Store(store.path))
    assert trials.set_index("trial")["best"][again] == 0.875
    assert list(metrics.loc[metrics["trial"] == again, "metric_value"]) == [0.75, 0.875]
    weights = found[(found["trial"] == again) & (found["matrix"] == "W")]
    assert list(weights["stable_rank"]) == [4.0, 3.0]


def test_a_failing_trial_is_tried_again_alone_and_stops_nobody(tmp_path: Path) -> None:
    packs: list[int] = []

    def sometimes(trials: Sequence[Trial], *rest: Any, **more: Any) -> None:
        packs.append(len(trials))
        if any(t.rank == 2 and t.learning_rate == 1e-3 for t in trials):
            raise RuntimeError("no luck")
        pretend(trials, *rest, **more)

    store = create(tmp_path / "s")
    worker = Worker(store, store.packs(size=2), sometimes, retries=1, provenance={})
    assert set(worker.run().failed.values()) == {"RuntimeError: no luck"}
    (failed,) = missing(store, TRIALS)
    assert (failed.rank, failed.learning_rate) == (2, 1e-3)
    assert len(packs) == len(store.packs(size=2)) + 2  # the pack that failed, one by one
    assert [f.reason for f in store.log.failures[failed.id]] == ["RuntimeError: no luck"] * 2
    assert run(store) == []  # given up, also by the next worker
    store.log.forget([failed.id])
    assert run(store) == [failed.id]


def test_workers_that_cut_packs_differently_share_a_store(tmp_path: Path) -> None:
    """One with little memory holds the second half of what is one pack for this one."""
    store = create(tmp_path / "s")
    pack = [trial.id for trial in store.packs(size=6)[0]]
    theirs = store.log.claim(pack[3:], worker="other", host="elsewhere", boot="")
    assert theirs is not None
    trained: list[list[str]] = []

    def train(trials: Sequence[Trial], *rest: Any, **more: Any) -> None:
        trained.append([trial.id for trial in trials])
        pretend(trials, *rest, **more)
        if trained[-1] == pack[:3]:
            store.log.end(theirs, "release")

    Worker(store, store.packs(size=6), train, retries=0, provenance={}).run()
    assert trained[-2:] == [pack[:3], pack[3:]]
    assert not missing(store, TRIALS)


def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    store = create(tmp_path / "s")
    with pytest.raises(OSError, match="No space left"):
        run(store, full)
    assert not store.log.live
    assert not store.log.failures
    assert len(run(store)) == len(TRIALS)


def test_a_study_may_grow(tmp_path: Path) -> None:
    run(create(tmp_path / "s"))
    grown = Study.parse(TEXT.replace("[1, 2, 4]", "[1, 2, 4, 8]"))
    store = create(tmp_path / "s", grown, **{"data/RTE": "a"})
    assert len(missing(store, grown.trials(WIDTH))) == 2
    assert "8" in store.study_text


def test_a_store_knows_which_trials_were_given_longer(tmp_path: Path) -> None:
    """Also when the study has lost that arm since."""
    longer = Study.parse(TEXT + "[[arm]]\nbudget = 3\nrank = 2\nmethod = 'lora'\n")
    run(create(tmp_path / "s", longer))
    for store in (Store(tmp_path / "s"), create(tmp_path / "s", STUDY)):
        trials = store.trials()
        assert set(trials.loc[trials["budget"].eq(3), "rank"]) == {2}
        assert sorted(trials["budget"].unique()) == [1, 3]
        assert trials["budget"].eq(3).sum() == 2


def test_what_is_said_of_a_new_task_changes_no_old_one(tmp_path: Path) -> None:
    run(create(tmp_path / "s"))
    wider = TEXT.replace('task = "RTE"', 'task = ["RTE", "CoLA"]')
    assert wider != TEXT
    create(
        tmp_path / "s", Study.parse(wider + "[fixed.task.CoLA]\nepochs = 2\n"), **{"data/RTE": "a"}
    )
    with pytest.raises(ValueError, match="begun with task = "):
        create(
            tmp_path / "s",
            Study.parse(wider + "[fixed.task.RTE]\nepochs = 2\n"),
            **{"data/RTE": "a"},
        )


@pytest.mark.parametrize(
    ("study", "fingerprints", "says"),
    [
        (
            Study.parse(TEXT.replace('"t"', '"u"')),
            {"data/RTE": "a"},
            "holds study 't'; found study 'u'",
        ),
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


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    (tmp_path / "a.json").write_text('{"format": 99}')
    with pytest.raises(
        ValueError, match=r"expected format 1 or older; found 99.*pip install --upgrade rankscope"
    ):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"format"')
    with pytest.raises(ValueError, match="found damage"):
        read_json(tmp_path / "a.json")
