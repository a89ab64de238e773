"""``report_to``: each tracker holds what the store holds, read back by its own library."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TARGETS
from rankscope.cli import main
from rankscope.collect.trackers import entries_of
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep import trackers
from rankscope.sweep.run import run
from studies import study_text

Points = dict[tuple[str, int], float]
Make = Callable[..., Study]


@pytest.fixture
def study(tiny_models: dict[str, str], tiny_data: Path) -> Make:
    def make(*names: str, rates: Any = (1e-2, 1e30), seeds: Any = 0) -> Study:
        text = study_text(
            tiny_models["roberta"], "CoLA", method="lora", rank=2, learning_rate=rates, seed=seeds,
            data=tiny_data, steps=6, eval_every=3, target_modules=TARGETS["roberta"],
        )  # fmt: skip
        return Study.parse(f"report_to = {list(names)}\n{text}" if names else text)

    return make


def expected(store: Store, trial: str) -> Points:
    """The same numbers by hand: medians over layers, rho and drift from their definitions."""
    found: Points = {}
    metrics = store.metrics().query("trial == @trial")
    names = {"train_loss": "train/loss", "epoch": "train/epoch", "eval_loss": "eval/loss"}
    names |= {"accuracy": "eval/accuracy", "matthews_correlation": "eval/matthews_correlation"}
    names |= {"is_constant": "eval/is_constant"}
    for row in metrics.to_dict("records"):
        found |= {(name, row["step"]): row[key] for key, name in names.items() if key in row}
    spectra = store.spectra().query("trial == @trial")
    base = spectra.query("matrix == 'W'").set_index("layer")
    for step, rows in spectra.groupby("step"):
        update, tuned = (
            rows[rows["matrix"].eq(name)].set_index("layer").loc[base.index]
            for name in ("dW", "W+dW")
        )
        values = {
            "stable_rank/dW": update["stable_rank"],
            "stable_rank/tuned": tuned["stable_rank"],
            "update/rho": update["spectral_norm"] / base["spectral_norm"],
            "update/drift": np.log(tuned["stable_rank"] / base["stable_rank"]),
        }
        found |= {
            (name, int(str(step))): np.nanmedian(x) for name, x in values.items() if x.notna().any()
        }
    return {key: float(value) for key, value in found.items() if np.isfinite(value)}


def in_tensorboard(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {(tag, event.step): event.value for tag in tags for event in events.Scalars(tag)}


def check_against(store: Store, read: Callable[[str], Points], *, rel: float) -> None:
    ids = store.done_ids()
    assert len(ids) == 2
    for trial in ids:
        right = expected(store, trial)
        if store.results()[trial]["status"] == "done":
            assert {step for _, step in right} >= {0, 1, 3, 4, 6}
            assert {name.split("/")[0] for name, _ in right} == {
                "train", "eval", "stable_rank", "update",
            }  # fmt: skip
        assert read(trial) == pytest.approx(right, rel=rel, abs=1e-30)


@pytest.mark.parametrize("workers", [1, 2])
def test_tensorboard(study: Make, tmp_path: Path, workers: int) -> None:
    """Its scalars are float32. A store that is whole is not logged again."""
    pytest.importorskip("tensorboard", reason="pip install -e '.[trackers]'")
    store = run(study("tensorboard"), tmp_path / "s", workers=workers, quiet=True)
    check_against(store, lambda trial: in_tensorboard(tmp_path / "s/tensorboard" / trial), rel=1e-6)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("events.out.*")}
    assert len(files) == 2
    run(study("tensorboard"), tmp_path / "s", quiet=True)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("events.out.*")}


@pytest.mark.filterwarnings("ignore")  # its own, of SQLAlchemy
def test_mlflow(study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a local database of its own kind, as it makes one by default."""
    mlflow = pytest.importorskip("mlflow", reason="pip install -e '.[trackers]'")
    pytest.importorskip("sqlalchemy", reason="MLflow's database; mlflow brings it, skinny not")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    store = run(study("mlflow"), tmp_path / "s", quiet=True)
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("tracked").experiment_id
    runs = {one.info.run_name: one for one in client.search_runs([experiment])}
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    for trial in store.planned():
        said = runs[trial.id].data.params
        assert said["learning_rate"] == str(trial.learning_rate)
        assert said["task"] == "CoLA"

    def read(trial: str) -> Points:
        one = runs[trial]
        return {
            (name, point.step): point.value
            for name in one.data.metrics
            for point in client.get_metric_history(one.info.run_id, name)
        }

    check_against(store, read, rel=1e-12)


def test_wandb_offline(study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install -e '.[trackers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    store = run(study("wandb"), tmp_path / "s", quiet=True)
    found: list[Points] = []
    for place in sorted(tmp_path.glob("wandb/offline-run-*")):
        points = {
            (name, line["_step"]): value
            for line in entries_of(place)
            for name, value in line.items()
            if not name.startswith("_")
        }
        found.append(points)
    right = [
        {
            (name.replace("/", "_").replace("train_loss", "loss"), step): value
            for (name, step), value in points.items()
        }
        for points in (expected(store, trial) for trial in store.done_ids())
    ]
    assert sorted(found, key=len) == [pytest.approx(x, rel=1e-12) for x in sorted(right, key=len)]


def test_trackio(study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its database, read as what it is: SQLite."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="pip install -e '.[trackers]'")
    store = run(study("trackio"), tmp_path / "s", quiet=True)
    with sqlite3.connect(tmp_path / "trackio" / "tracked.db") as data:
        rows = data.execute("SELECT run_name, step, metrics FROM metrics").fetchall()

    def read(trial: str) -> Points:
        lines = [(step, json.loads(values)) for name, step, values in rows if name == trial]
        return {(key, step): value for step, line in lines for key, value in line.items()}

    check_against(store, read, rel=1e-12)


def test_a_store_goes_on_with_trackers_and_without(study: Make, tmp_path: Path) -> None:
    """Neither trials nor the study in store.json know of them; what is trained from then on is
    logged."""
    pytest.importorskip("tensorboard")
    logs = tmp_path / "s" / trackers.FOLDER
    store = run(study(rates=[1e-2]), tmp_path / "s", quiet=True)
    first = store.done_ids()
    before = json.loads((tmp_path / "s/store.json").read_text())["study"]
    run(study("tensorboard", rates=[1e-2]), tmp_path / "s", quiet=True)
    assert json.loads((tmp_path / "s/store.json").read_text())["study"] == before
    assert not logs.exists()
    store = run(study("tensorboard"), tmp_path / "s", quiet=True)
    told = [folder.name for folder in logs.iterdir()]
    assert sorted([*told, *first]) == store.done_ids()
    assert len(told) == 1


def test_a_tracker_that_fails_is_said_once_and_training_goes_on(
    study: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two more seeds are two packs."""
    pytest.importorskip("tensorboard")
    run(study(rates=1e-2), tmp_path / "s", quiet=True)
    (tmp_path / "s" / trackers.FOLDER).write_text("a file, where a folder would be made")
    more = study("tensorboard", rates=1e-2, seeds=[0, 1, 2])
    store = run(more, tmp_path / "s", quiet=True)
    assert len(store.done_ids()) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "report_to" in line]
    assert line.startswith(
        "rankscope: report_to: tensorboard has failed, and logs nothing from here on: "
    )
    assert "Error: " in line


def test_what_is_said_before_training(
    study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not installed, and a folder of logs that has a library's name: one line, status 2."""
    for name in ("trackio", "wandb"):
        if importlib.util.find_spec(name) is not None:
            pytest.skip(f"{name} is installed")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("trackio", "wandb"):
        file = tmp_path / "study.toml"
        file.write_text(study(name).source)
        assert main(["run", str(file), "--store", str(tmp_path / "s")]) == 2
        assert capsys.readouterr().err.splitlines() == [
            f"rankscope: report_to: {name!r} needs its library, which is not installed. "
            f"Type: pip install {name}"
        ]
        assert not (tmp_path / "s").exists()
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match="expected in a folder; found s3://b/s"):
        trackers.check(["tensorboard"], "x", "s3://b/s")
    for wrong in ('"nope"', "3", '["wandb", "wandb"]'):
        file.write_text(study("wandb").source.replace("['wandb']", wrong))
        assert main(["run", str(file), "--store", str(tmp_path / "s")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "report_to: " in line
