"""Trials that were trained elsewhere: what ``add_trial`` keeps of them, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rankscope as rs
from own_store import assert_alike, own_store
from rankscope.report.from_store import analyze
from rankscope.store.lease import WorkerLock
from rankscope.store.store import Store
from rankscope.sweep.check import check
from rankscope.sweep.run import make_comparison
from rankscope.sweep.status import status


@pytest.fixture(scope="module")
def trained(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Path, str]:
    return own_store(tiny_models["roberta"], tiny_data, tmp_path_factory.mktemp("own"))


def collected(store: Store, saved: Path, model: str, place: Path) -> Store:
    """The same trials, from their weights and metrics alone."""
    copy = Store.create_empty(place, name="own")
    metrics = store.metrics()
    for trial in store.planned():
        said = store.folder(trial.id).result()
        own = metrics[metrics["trial"].eq(trial.id)].drop(columns=["trial", "metric_value"])
        folders = {int(path.name.rpartition("-")[2]): path for path in (saved / trial.id).iterdir()}
        copy.add_trial(
            adapter=folders,
            metrics=own,
            metric=said["metric"],
            base=model,
            result={key: said[key] for key in ("status", "constant", "steps", "diverged_at")},
            **trial.model_dump(),
        )
    make_comparison(copy, base_of=lambda name: model, quiet=True)
    return copy


def test_the_same_trials_give_the_same_conclusions(
    trained: tuple[Store, Path, str], tmp_path: Path
) -> None:
    """An ordinary store: the ids are the same, tables, conclusions, status and report as well."""
    store, saved, model = trained
    copy = collected(store, saved, model, tmp_path / "copy")
    assert copy.done_ids() == store.done_ids()
    assert_alike(analyze(copy).to_dict(), analyze(store).to_dict())
    assert status(copy).line() == "12 of 12 trials done" == status(store).line()
    pd.testing.assert_frame_equal(
        copy.trials().drop(columns="seconds"), store.trials().drop(columns="seconds")
    )
    pd.testing.assert_frame_equal(copy.metrics(), store.metrics())
    assert len(copy.comparison()) == len(store.comparison()) > 0


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"step": [4, 8, 12], **columns})


@pytest.fixture
def run_of_four(trained: tuple[Store, Path, str]) -> dict[str, Any]:
    """What ``add_trial`` takes of one LoRA trial with rank 4."""
    store, saved, model = trained
    trials = store.trials()
    id = trials.loc[trials["rank"].eq(4), "trial"].iloc[0]
    return {
        "adapter": {step: saved / id / f"checkpoint-{step}" for step in (4, 8, 12)},
        "metrics": frame(accuracy=[0.5, 0.7, 0.6], eval_loss=[0.9, 0.8, 0.5]),
        "metric": "accuracy",
        "base": model,
        "model": "tiny",
        "task": "mine",
        "learning_rate": 1e-3,
        "seed": 0,
    }


def test_what_is_known_is_read_and_the_rest_is_unknown(
    run_of_four: dict[str, Any], trained: tuple[Store, Path, str], tmp_path: Path
) -> None:
    """Rank, rule and alpha from the adapter; best and last weights are those of their steps; the
    spectra are those that training recorded."""
    store = Store.create_empty(tmp_path / "s", name="mine")
    id = store.add_trial(**run_of_four)
    (trial,) = store.trials().to_dict("records")
    assert (trial["trial"], trial["rank"], trial["scaling"]) == (id, 4, "alpha/r")
    assert (trial["best"], trial["best_step"], trial["last"]) == (0.7, 8, 0.6)
    folder = store.folder(id, weights=True)
    assert folder.trial()["lora_alpha"] == 8.0
    assert folder.trial()["batch_size"] is None
    for part, step in (("best", 8), ("last", 12)):
        name = "adapter_model.safetensors"
        own = run_of_four["adapter"][step] / name
        assert (folder.path / part / name).read_bytes() == own.read_bytes()
    origin = trained[0]
    trials = origin.trials()
    same = trials.loc[trials["rank"].eq(4), "trial"].iloc[0]
    keys = ["step", "layer", "matrix"]
    theirs = origin.spectra()
    theirs = theirs[theirs["trial"].eq(same)].drop(columns="trial").set_index(keys)
    ours = store.spectra().drop(columns="trial").set_index(keys)
    assert {step for step, _, _ in ours.index} == {0, 4, 8, 12}
    pd.testing.assert_frame_equal(
        ours, theirs.loc[ours.index], check_like=True, rtol=1e-6, check_dtype=False
    )
    assert "4 to 4" not in store.study_text
    assert "# rank: 4" in store.study_text


def test_a_loss_is_best_where_it_is_lowest(run_of_four: dict[str, Any], tmp_path: Path) -> None:
    store = Store.create_empty(tmp_path / "s")
    run_of_four["metrics"]["eval_loss"] = [0.9, 0.4, 0.5]
    id = store.add_trial(**(run_of_four | {"metric": "eval_loss"}))
    said = store.folder(id).result()
    assert (said["best"], said["best_step"], said["greater_is_better"]) == (0.4, 8, False)
    higher = {"metric": "eval_loss", "greater_is_better": True, "seed": 1}
    assert store.folder(store.add_trial(**(run_of_four | higher))).result()["best"] == 0.9


def test_adding_again_changes_nothing_and_every_file_is_as_committed(
    run_of_four: dict[str, Any], tmp_path: Path
) -> None:
    store = Store.create_empty(tmp_path / "s")
    id = store.add_trial(**run_of_four)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    assert Store.create_empty(tmp_path / "s").add_trial(**run_of_four) == id
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    found = check(tmp_path / "s")
    assert (found.whole, found.faults, found.is_whole) == (1, [], True)
    weights = tmp_path / "s" / "trials" / id / "best" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert not check(tmp_path / "s").is_whole


def test_a_claim_whose_process_died_does_not_stand_in_the_way(
    run_of_four: dict[str, Any], tmp_path: Path
) -> None:
    store = Store.create_empty(tmp_path / "s")
    id = store.add_trial(**run_of_four)
    other = Store.create_empty(tmp_path / "t")
    lock = WorkerLock()
    assert other.log.claim([id], worker=lock.worker, host=lock.host, boot=lock.boot)
    with pytest.raises(ValueError, match="another process is adding it"):
        other.add_trial(**run_of_four)
    lock.leave(holding=True)  # what is left when a process dies
    assert other.add_trial(**run_of_four) == id


def test_without_a_base_there_is_no_drift(run_of_four: dict[str, Any], tmp_path: Path) -> None:
    store = Store.create_empty(tmp_path / "s")
    store.add_trial(**(run_of_four | {"base": None}))
    assert set(store.spectra()["matrix"]) == {"dW"}
    analyze(store)
    status(store).text()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no rate": ({"learning_rate": None}, "learning_rate: expected a value, found none"),
    "another rank": ({"rank": 8}, "rank: expected 4, as .*adapter_config.json says; found 8"),
    "another alpha": ({"lora_alpha": 1}, "lora_alpha: expected 8.0, as .*; found 1"),
    "a typing error": ({"learning_rat": 1}, "learning_rat: no setting .* 'learning_rate'"),
    "a word": ({"seed": "one"}, "seed: expected a valid integer.*; found 'one'"),
    "no such metric": ({"metric": "f1"}, "metrics: expected a column f1; found step, acc"),
    "a step twice": (
        {"metrics": pd.DataFrame({"step": [4, 4], "accuracy": [1, 2]})},
        "metrics: expected one row per step",
    ),
    "a word for a number": (
        {"metrics": pd.DataFrame({"step": [4], "accuracy": ["good"]})},
        "metrics: accuracy: expected numbers; found 'good'",
    ),
    "no folder": ({"adapter": {4: "nowhere"}}, "nowhere: expected a folder with weights"),
    "no step": ({"adapter": {}}, "adapter: expected weights"),
    "a rate of zero": ({"learning_rate": 0}, "learning_rate: expected a number above 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals_are_one_line_and_leave_nothing(
    run_of_four: dict[str, Any], tmp_path: Path, name: str
) -> None:
    change, says = WRONG[name]
    store = Store.create_empty(tmp_path / "s")
    with pytest.raises(ValueError, match=says) as error:
        store.add_trial(**(run_of_four | change))
    assert "\n" not in str(error.value)
    assert store.done_ids() == []
    assert not (tmp_path / "s" / "work").exists()


def test_unlike_things_are_refused(
    run_of_four: dict[str, Any], trained: tuple[Store, Path, str], tmp_path: Path
) -> None:  # fmt: skip
    """Another trial of the same settings, another base of the same name, another kind of store."""
    store = Store.create_empty(tmp_path / "s")
    id = store.add_trial(**run_of_four)
    other = run_of_four | {"metrics": frame(accuracy=[0.5, 0.7, 0.61])}
    with pytest.raises(ValueError, match=f"of these settings .{id}. with another metrics.jsonl"):
        store.add_trial(**other)
    swapped = dict(zip((4, 8, 12), reversed(run_of_four["adapter"].values()), strict=True))
    with pytest.raises(ValueError, match=r"with another (best|last)/adapter_model"):
        store.add_trial(**(run_of_four | {"adapter": swapped}))
    base = shutil.copytree(run_of_four["base"], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))
    with pytest.raises(ValueError, match="model tiny has changed since this store was begun"):
        store.add_trial(**(run_of_four | {"base": base, "seed": 1}))
    assert store.add_trial(**(run_of_four | {"base": base, "model": "other"})) != id
    with pytest.raises(ValueError, match="holds study 't', which rankscope trains"):
        Store.create_empty(trained[0].path)
    with pytest.raises(ValueError, match="expected a store for trials that were trained elsewhere"):
        trained[0].add_trial(**run_of_four)
    with pytest.raises(ValueError, match="begun as 'collected'; found 'mine'"):
        Store.create_empty(tmp_path / "s", name="mine")
    with pytest.raises(ValueError, match="none can be trained into it"):
        rs.run(trained[0].study.model_copy(update={"name": "collected"}), tmp_path / "s", workers=1)
    with pytest.raises(ValueError, match="name: expected letters"):
        Store.create_empty(tmp_path / "t", name="a b")


def test_full_checkpoints_are_measured_where_asked(
    trained: tuple[Store, Path, str], run_of_four: dict[str, Any], tmp_path: Path
) -> None:
    origin, saved, _ = trained
    trials = origin.trials()
    id = trials.loc[trials["method"].eq("full"), "trial"].iloc[0]
    store = Store.create_empty(tmp_path / "s")
    given = run_of_four | {"adapter": saved / id / "checkpoint-12", "method": "full"}
    with pytest.raises(ValueError, match="base: expected the pretrained model"):
        store.add_trial(**(given | {"base": None}))
    store.add_trial(**given)
    layers = set(store.spectra()["layer"])
    assert {name.rpartition(".")[2] for name in layers} == {"query", "key", "value", "dense"}
    assert not {name for name in layers if "classifier" in name or "embeddings" in name}
    store.add_trial(**(given | {"target_modules": ["query"], "seed": 1}))
    spectra = store.spectra()
    assert spectra.groupby("trial")["layer"].nunique().tolist() in ([2, 12], [12, 2])
    assert np.isfinite(spectra.loc[spectra["matrix"].eq("W+dW"), "stable_rank"]).all()
