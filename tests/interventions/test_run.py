"""`rankscope intervene` on a store and on an adapter: what it keeps, takes up again and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import rankscope as rs
from conftest import save_tiny_model, sentences, write_tsv
from rankscope.cli import main
from rankscope.interventions import run as running
from rankscope.interventions.settings import FAMILIES
from rankscope.store import interventions
from rankscope.store.store import Store
from studies import study_text

STUDY = study_text(
    "model", "CoLA", rank=[2, 4], learning_rate=3e-2, data="data", steps=12, eval_every=12,
    target_modules=["query", "value"],
)  # fmt: skip
FEW = {"rows": 20, "refit": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study file, its model and data, and a store of two adapters and a full fine-tune."""
    root = tmp_path_factory.mktemp("study")
    save_tiny_model(root / "model", "roberta")
    save_tiny_model(root / "gpt2", "gpt2")
    write_tsv(root / "data", "CoLA", "train", sentences(40))
    write_tsv(root / "data", "CoLA", "validation", sentences(24, start=40))
    (root / "study.toml").write_text(STUDY)
    rs.run(rs.Study.load(root / "study.toml"), root / "runs", quiet=True)
    return root


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may write in."""
    shutil.copytree(trained, tmp_path / "study")
    return tmp_path / "study"


def test_a_store(study: Path) -> None:
    store, loaded = Store(study / "runs"), rs.Study.load(study / "study.toml")
    families = ["scale", "random"]
    table = rs.intervene(
        study / "runs", families=families, rows=24, refit=16, study=loaded, quiet=True
    )
    assert table["trial"].nunique() == 3
    counts = table.groupby("family").size()
    assert counts.to_dict() == {name: 3 * len(FAMILIES[name]) for name in families}
    own = table[table["family"].eq("scale") & table["level"].eq(1)].set_index("trial")
    recorded = store.trials().set_index("trial")["last"]
    for trial in recorded.index:  # the edit that changes nothing is the trial as it was evaluated
        assert own.loc[trial, "value"] == pytest.approx(recorded[trial], abs=1e-12)
    spectra = store.spectra().query("step == 12")
    first = store.spectra().query("matrix == 'W'")
    for trial in own.index:  # and has drifted as far as training recorded
        rows = [
            part[part["trial"].eq(trial)] for part in (spectra.query("matrix == 'W+dW'"), first)
        ]
        after, before = (part.set_index("layer")["stable_rank"] for part in rows)
        log = np.log(after / before).median()
        assert own.loc[trial, "log_drift"] == pytest.approx(log, abs=2e-3)
    full = table[table["method"].eq("full")]
    assert full["unmet"].eq(0).all()
    zero = table[table["family"].eq("scale") & table["level"].eq(0)]
    assert zero["log_drift"].abs().max() < 1e-3
    adapters = zero[zero["method"].eq("lora")]
    assert np.allclose(adapters["feature_sd"], adapters["base_feature_sd"])


def test_what_is_there_is_not_made_again(study: Path) -> None:
    how = {**FEW, "study": rs.Study.load(study / "study.toml"), "quiet": True}
    first = rs.intervene(study / "runs", families=["top"], **how)
    store = Store(study / "runs")
    (key,) = interventions.keys(store)
    for id in store.done_ids():  # made again, these values would be others
        table, about = interventions.read(store, key, id)  # type: ignore[misc]
        interventions.write(store, key, id, table.assign(value=0.123), about)
    again = rs.intervene(study / "runs", families=["top"], **how)
    assert again.equals(first.assign(value=0.123))
    more = rs.intervene(study / "runs", families=["restore"], **how)
    assert len(more) == len(first) + 3
    assert set(more.loc[more["value"].ne(0.123), "family"]) == {"restore"}  # not the own variant
    trial = first["trial"].iloc[0]
    path = study / "runs" / interventions.FOLDER / key / f"{trial}.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)  # a harmed table counts as absent
    assert interventions.read(store, key, trial) is None
    rs.intervene(study / "runs", families=["top"], **how)
    healed, _ = interventions.read(Store(study / "runs"), key, trial)  # type: ignore[misc]
    assert set(healed["family"]) == {"scale", "top"}
    folder = study / "runs" / interventions.FOLDER
    shutil.rmtree(folder)
    folder.write_text("9")
    assert len(interventions.faults(Store(study / "runs"))) == 3
    assert len(rs.intervene(study / "runs", families=["top"], **how)) == len(first)
    assert interventions.faults(Store(study / "runs")) == []


def test_a_trial_that_another_process_holds_is_left_to_it(study: Path) -> None:
    store, how = Store(study / "runs"), {**FEW, "quiet": True}
    loaded = rs.Study.load(study / "study.toml")
    plan = running.plan_of(store, loaded, None, ["top"], False, running.Settings(**FEW))
    held = store.done_ids()[0]
    with interventions.claimed(store, plan.key, held) as ours:
        assert ours
        with interventions.claimed(store, plan.key, held) as second:
            assert not second
        table = rs.intervene(study / "runs", families=["top"], study=loaded, **how)
    assert held not in set(table["trial"])
    assert table["trial"].nunique() == 2


def test_status_counts_what_was_edited_and_plan_says_what_it_takes(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    assert main(["status", "runs"]) == 0
    assert "edited" not in capsys.readouterr().out
    some = Store("runs").done_ids()[:2]
    rs.intervene("runs", trials=some, families=["top"], quiet=True, **FEW)
    assert main(["status", "runs"]) == 0
    assert "2 of 3 finished trials edited and evaluated again" in capsys.readouterr().out
    assert main(["plan", "study.toml"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "rankscope intervene" in x]
    assert f"3 trials in {sum(map(len, FAMILIES.values()))} ways each" in line


def test_an_adapter_of_anybody(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(study / "runs")
    trial = next(t for t in store.planned() if t.rank == 4)
    folder = store.folder(trial.id).path / "last"
    arguments = ["intervene", str(folder), "--base", str(study / "model"), "--task", "CoLA"]
    arguments += ["--data", str(study / "data"), "--rows", "20", "--refit", "16", "--json"]
    arguments += ["--families", "restore", "without_top", "--each-layer", "--layers", r"\.0\."]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    scopes = {row["scope"] for row in rows}
    assert len(scopes) == 3
    assert all(".0." in scope for scope in scopes - {"all"})
    loaded = rs.Study.load(study / "study.toml")
    there = rs.intervene(
        study / "runs",
        trials=[trial.id],
        study=loaded,
        families=["restore"],
        layers=r"\.0\.",
        **FEW,
    )
    one = there[there["family"].eq("restore")].iloc[0]
    (same,) = [r for r in rows if r["family"] == "restore" and r["scope"] == "all"]
    assert same["loss"] == pytest.approx(one["loss"], abs=1e-7)


def test_a_trial_that_cannot_be_edited_is_named_and_the_others_are(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    store = Store("runs")
    broken = next(t.id for t in store.planned() if t.method == "full")
    path = study / "runs" / "trials" / broken / "last" / "model.safetensors"
    path.write_bytes(b"x" * path.stat().st_size)
    assert main(["intervene", "runs", "--rows", "20", "--refit", "0", "--families", "restore"]) == 3
    assert broken in capsys.readouterr().err
    (key,) = interventions.keys(store)
    assert sum(1 for _ in interventions.everything(Store("runs"))) == 2
    assert interventions.read(store, key, broken) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "expected a store .* or an adapter with --base MODEL --task TASK"),
        (["runs", "--trials", "abc"], "expected ids of finished trials, such as .*; found 'abc'"),
        (["runs", "--families", "scael"], "expected some of scale, cap, .*; found 'scael'"),
        (["runs", "--layers", "(("], "layers: expected a regular expression"),
        (["runs", "--rows", "1"], "rows: expected a number from 2; found 1"),
        (["runs", "--base", "model"], "needs both --base MODEL and --task TASK"),
        (
            ["model", "--base", "model", "--task", "CoLA", "--data", "data"],
            "weights are the base's",
        ),
        (
            [
                "ADAPTER",
                "--base",
                "model",
                "--task",
                "CoLA",
                "--data",
                "data",
                "--layers",
                "nosuch",
            ],
            "layers = 'nosuch': expected it to find a layer",
        ),
        (["ADAPTER", "--base", "gpt2", "--task", "CoLA", "--data", "data"], "another model"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], says: str, trained: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(trained)
    store = Store("runs")
    lora = next(t.id for t in store.planned() if t.method == "lora")
    adapter = str(trained / "runs" / "trials" / lora / "last")
    assert main(["intervene", *(adapter if a == "ADAPTER" else a for a in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(says, line), line
