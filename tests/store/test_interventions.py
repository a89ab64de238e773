"""Edited trials that are taken away, replaced or altered are named, and come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pretend import SMALL, create, edit, pretend, run, sweep
from rankscope.cli import main
from rankscope.store import interventions
from rankscope.store.files import dumps, loads
from rankscope.store.log import Log
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.trial import Trial
from rankscope.sweep.check import check


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight trials, two of them edited."""
    folder = tmp_path_factory.mktemp("stores") / "whole"
    sweep(folder)
    edit(Store(folder))
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "s")
    return tmp_path / "s"


def edited(place: Path) -> list[str]:
    return sorted(path.stem for path in place.glob("interventions/settings/*.json"))


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def renamed(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("9")


def a_dead_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


@pytest.mark.parametrize("way", [gone, renamed, a_file, a_dead_link])
@pytest.mark.parametrize("name", ["interventions", "interventions/settings"])
def test_edits_taken_away_are_named_until_they_are_made_again(
    name: str, way: Callable[[Path], None], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = edited(place)
    before = interventions.table(Store(place))
    way(place / name)
    says = (
        f"edited trials left out, 2; the first: {place}/interventions/settings/{first}: "
        f"{first}.parquet is missing. rankscope check {place} --repair"
    )
    assert main(["status", str(place)]) == 3
    said = capsys.readouterr().out
    assert says in said.splitlines()
    assert ("edited and evaluated again" in said) == (way is renamed and name != "interventions")
    for command in ("analyze", "report") if way is gone else ("analyze",):
        assert main([command, str(place)]) == 3
        assert says in capsys.readouterr().err
    assert check(place, repair=True).is_whole  # which also makes folders what they were
    assert main(["status", str(place)]) == 0
    assert "left out" not in capsys.readouterr().out
    edit(Store(place))
    assert main(["status", str(place)]) == 0
    assert "2 of 8 finished trials edited" in capsys.readouterr().out
    if way is not renamed or name == "interventions":  # there are two such folders now
        assert interventions.table(Store(place)).equals(before)


def test_edits_made_again_are_not_missed_and_need_no_repair(place: Path) -> None:
    shutil.rmtree(place / "interventions")
    assert len(interventions.faults(Store(place))) == 2
    edit(Store(place))
    assert interventions.faults(Store(place)) == []
    assert check(place).is_whole


def test_one_that_is_missing_leaves_the_other(place: Path) -> None:
    first, second = edited(place)
    for kind in ("json", "parquet"):
        (place / f"interventions/settings/{second}.{kind}").unlink()
    (fault,) = interventions.faults(Store(place))
    assert fault == (
        f"interventions/settings/{second}", f"{second}.parquet is missing", False
    )  # fmt: skip
    assert set(interventions.table(Store(place))["trial"]) == {first}


def of_the_day_before(place: Path, first: str, second: str) -> None:
    """A pair of files that fit each other and the trial."""
    kept = place.with_name("backup")
    shutil.copytree(place / "interventions", kept)
    table, about = interventions.read(Store(place), "settings", first)  # type: ignore[misc]
    more = {key: about[key] for key in ("labels",)} | {"families": ["scale", "top"]}
    interventions.write(Store(place), "settings", first, table.assign(value=0.3), more)
    shutil.rmtree(place / "interventions")
    shutil.copytree(kept, place / "interventions")


def of_another_trial(place: Path, first: str, second: str) -> None:
    for kind in ("json", "parquet"):
        folder = place / "interventions/settings"
        shutil.copy(folder / f"{second}.{kind}", folder / f"{first}.{kind}")


def sealed_again(place: Path, first: str, second: str) -> None:
    path = place / f"interventions/settings/{first}.json"
    path.write_bytes(dumps(loads(path.read_bytes(), "x") | {"labels": [1, 1]}))


@pytest.mark.parametrize("way", [of_the_day_before, of_another_trial, sealed_again])
def test_files_that_fit_each_other_and_are_not_what_was_kept(
    way: Callable[[Path, str, str], None], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = edited(place)
    way(place, first, second)
    assert interventions.read(Store(place), "settings", first) is None
    assert set(interventions.table(Store(place))["trial"]) == {second}
    assert main(["status", str(place)]) == 3
    said = capsys.readouterr().out
    assert f"left out, 1; the first: {place}/interventions/settings/{first}: " in said
    assert "1 of 8 finished trials edited" in said
    assert check(place, repair=True).is_whole
    assert (place / f"harmed/{first}.json-1").is_file()
    assert interventions.faults(Store(place)) == []


def test_edits_are_of_their_weights_whoever_trained_them(place: Path) -> None:
    """Trained again to the same bits, a trial's edits still count, and are missed; to others, they
    count no more and are not missed."""

    def otherwise(
        trials: Sequence[Trial], folders: Sequence[TrialDir], *more: Any, **how: Any
    ) -> None:
        pretend(trials, folders, *more, **how)
        for folder in folders:
            (folder.path / "last" / "adapter_model.safetensors").write_bytes(b"others")

    first, second = edited(place)
    for id, train in ((first, pretend), (second, otherwise)):
        shutil.rmtree(place / "trials" / id)
        Store(place).recover()
        assert run(Store(place), train) == [id]
    assert set(interventions.table(Store(place))["trial"]) == {first}
    assert interventions.faults(Store(place)) == []
    shutil.rmtree(place / "interventions")
    names = [fault.name for fault in interventions.faults(Store(place))]
    assert names == [f"interventions/settings/{first}"]


def test_older_versions_read_a_forget_of_nothing(place: Path) -> None:
    *_, last = sorted((place / "log").glob("*.json"))
    said = json.loads(last.read_text())
    assert (said["format"], said["event"], said["trials"]) == (1, "forget", [])
    ((settings, trial, (weights, files)),) = said["edits"]
    assert (settings, trial) == ("settings", edited(place)[-1])
    assert sorted(files) == [f"{trial}.json", f"{trial}.parquet"]
    assert set(weights) == {
        f"{part}/adapter_{name}" for part in ("best", "last")
        for name in ("config.json", "model.safetensors")
    }  # fmt: skip


def test_edits_that_no_entry_speaks_of_count_by_their_seals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As older versions left them."""
    place = tmp_path / "s"
    sweep(place)
    monkeypatch.setattr(Log, "edited", lambda *_: None)
    edit(Store(place))
    monkeypatch.undo()
    assert Store(place).log.edits == {}
    assert interventions.table(Store(place))["trial"].nunique() == 2
    assert check(place).is_whole
    first, _ = edited(place)
    path = place / f"interventions/settings/{first}.parquet"
    path.write_bytes(path.read_bytes()[::-1])
    assert main(["analyze", str(place)]) == 3
    assert "left out, 1; the first" in capsys.readouterr().err
    assert main(["status", str(place)]) == 0  # reads none of them


@pytest.mark.parametrize(
    "edits",
    [5, [5], [["a"]], [["a", [], None]], [["a", "b", [{}, {"b.json": 5}]]], [["a", "b", [5, {}]]]],
)
def test_an_entry_that_says_something_else_is_lost(edits: Any, place: Path) -> None:
    log = Store(place).log
    log.append(lambda: {"event": "forget", "trials": [], "edits": edits})
    found = Store(place)
    assert len(interventions.faults(found)) == 0
    assert list(found.log.lost) == [log.length]
    assert len(found.log.edits) == 2


def test_in_a_bucket_they_are_read_only_where_tables_are(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = create(bucket, SMALL)
    run(store)
    edit(store)
    first, second = store.done_ids()[:2]
    assert interventions.faults(Store(bucket)) == []
    name = f"interventions/settings/{first}.parquet"
    data = store.storage.read(name)
    store.storage.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    assert interventions.faults(Store(bucket), glance=True) == []
    (fault,) = interventions.faults(Store(bucket))
    assert fault.name == name.removesuffix(".parquet")
    store.storage.write(name, data)
    store.storage.remove(f"interventions/settings/{second}.json")
    (fault,) = interventions.faults(Store(bucket), glance=True)
    assert fault.why == f"{second}.json is missing"
    assert main(["status", bucket]) == 3
    assert f"{second}.json is missing. rankscope check {bucket} --repair" in capsys.readouterr().out
