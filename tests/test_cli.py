"""The command line, as a user types it: right and wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import escape

from conftest import sentences, write_tsv
from rankscope.cli import main
from rankscope.store.store import Store
from studies import study_text


def study_of(model: str, data: Path | str) -> str:
    return study_text(model, "CoLA", rank=[1, 2, "d"], learning_rate=[1e-3, 1e-2], data=data)


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs one command line -> exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as exit:  # argparse's own
            status = int(exit.code or 0)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def study(tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(study_of(tiny_models["roberta"], tiny_data))
    return path


def test_plan_run_status_analyze_report(typed: Typed, study: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    status, out, _ = typed("plan", study)
    assert status == 0
    assert "8 of 8 trials to train" in out
    status, out, _ = typed("run", study, "--store", store, "--workers", 1)
    assert (status, out.splitlines()[0]) == (0, "8 of 8 trials done")
    assert typed("status", store)[:2] == (0, "8 of 8 trials done\n")
    assert "0 of 8 trials to train" in typed("plan", study, "--store", store)[1]
    status, out, _ = typed("analyze", store, "--json")
    concluded = out
    assert status == 0
    assert {v["hypothesis"] for v in json.loads(out)["verdicts"]} == {"H1", "H2", "H3", "H4", "H5"}
    status, out, _ = typed("analyze", store)
    assert status == 0
    assert all(name in out for name in ("H1", "H2", "H3", "H4"))
    status, out, err = typed("report", store, "-o", tmp_path / "out" / "page.html")
    assert (status, out, (tmp_path / "out").exists()) == (2, "", False)  # no tree out of a typo
    assert f"Type: mkdir -p {tmp_path / 'out'}" in err
    (tmp_path / "out").mkdir()
    status, out, _ = typed("report", store, "-o", tmp_path / "out" / "page.html")
    assert status == 0
    assert "page.html" in out
    page = (tmp_path / "out" / "page.html").read_text()
    assert "<html" in page
    assert (tmp_path / "out" / "figures").is_dir()
    assert typed("analyze", tmp_path / "out" / "data", "--json")[:2] == (0, concluded)
    assert_report_again(typed, tmp_path, page, study)
    (tmp_path / "out" / "data" / "drifts.parquet").write_bytes(b"no such thing")
    status, out, err = typed("analyze", tmp_path / "out" / "data")
    assert (status, out) == (2, "")
    assert "Traceback" not in err


def assert_report_again(typed: Typed, tmp_path: Path, page: str, study: Path) -> None:
    """``report data`` writes the same page and tables from the tables alone; without report.json
    the study's text is that of the file beside the folder."""
    data, again = tmp_path / "out" / "data", tmp_path / "again"
    again.mkdir()
    assert typed("report", data, "-o", again / "page.html")[0] == 0
    assert (again / "page.html").read_text() == page
    names = sorted(path.name for path in (tmp_path / "out" / "tables").iterdir())
    assert names == sorted(path.name for path in (again / "tables").iterdir())
    for name in sorted(path.name for path in data.iterdir()):
        assert (again / "data" / name).read_bytes() == (data / name).read_bytes(), name
    (again / "data" / "report.json").unlink()
    shutil.copy(study, again / "study.toml")
    before = {path: path.read_bytes() for path in (again / "data").iterdir()}
    status, out, _ = typed("report", again / "data")
    assert (status, out) == (0, f"report: {again / 'report.html'}\n")
    assert before == {path: path.read_bytes() for path in (again / "data").iterdir()}
    beside = (again / "report.html").read_text()
    assert str(escape(study.read_text().strip())) in beside
    assert "the tables of another report" in beside
    (again / "data" / "report.json").write_text("[]")
    status, _, err = typed("report", again / "data")
    assert status == 2
    assert err.count("\n") == 1
    assert "study_text" in err


def test_measure_prints_the_contract(
    typed: Typed, study: Path, tmp_path: Path, tiny_models: dict[str, str]
) -> None:
    typed("run", study, "--store", tmp_path / "store", "--workers", 1)
    trials = Store(tmp_path / "store").trials()
    trial = trials.loc[trials["rank"] == 2, "trial"].iloc[0]
    adapter = tmp_path / "store" / "trials" / trial / "last"
    status, out, _ = typed("measure", adapter, "--base", tiny_models["roberta"], "--json")
    assert status == 0
    found = json.loads(out)
    assert list(found) == ["rankscope", "source", "base", "rows", "skipped"]
    assert {row["matrix"] for row in found["rows"]} == {"W", "dW", "W+dW"}
    assert "layer,matrix" in typed("measure", adapter, "--csv")[1].splitlines()[0]
    assert typed("measure", adapter, "--parquet", tmp_path / "rows.parquet")[0] == 0
    assert len(pd.read_parquet(tmp_path / "rows.parquet")) == 4
    assert "query" in typed("measure", adapter)[1]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('model = "', 'model = "/nowhere', "model '/nowhere"),
        ('"CoLA"', '"Cola"', "did you mean 'CoLA'?"),
        ('"CoLA"', '"RTE"', "RTE/train.tsv; found no such file"),
        ("steps", "step", "[fixed] step: unknown key; did you mean 'steps'?"),
        ("[1, 2", "[0, 2", "rank: expected greater than or equal to 1; found 0"),
        ("[1, 2", "[1, 17", "rank: expected 1 to 16"),
        ("batch_size", 'target_modules = "querry"\nbatch_size', "found 'querry'"),
    ],
)
def test_a_wrong_study_is_one_line(
    typed: Typed, study: Path, tmp_path: Path, old: str, new: str, says: str
) -> None:
    study.write_text(study.read_text().replace(old, new, 1))
    check_refused(typed, study, tmp_path / "store", says)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            {"sentence": ["a"], "labels": [0]},
            "expected the columns sentence, label; found sentence, labels",
        ),
        ({"sentence": [], "label": []}, "expected rows; found none"),
        (
            {"sentence": ["a", "b"], "label": [1, 1]},
            "expected at least two classes; all 2 rows have label 1",
        ),
        ({"sentence": ["a", "b"], "label": [0, 2]}, "row 2: expected a label from 0 to 1; found 2"),
        (
            {"sentence": ["a", "b"], "label": [0, "x"]},
            "row 2: expected a number as label; found 'x'",
        ),
        (
            {"sentence": ["a", "b"], "label": [0, 0.5]},
            "row 2: expected a label from 0 to 1; found 0.5",
        ),
    ],
)
def test_wrong_data_is_one_line(
    typed: Typed,
    tmp_path: Path,
    tiny_models: dict[str, str],
    rows: dict[str, list[object]],
    says: str,
) -> None:
    write_tsv(tmp_path / "data", "CoLA", "train", pd.DataFrame(rows))
    write_tsv(tmp_path / "data", "CoLA", "validation", sentences(8))
    path = tmp_path / "study.toml"
    path.write_text(study_of(tiny_models["roberta"], "data"))
    check_refused(typed, path, tmp_path / "store", says)


def check_refused(typed: Typed, study: Path, store: Path, says: str) -> None:
    status, out, err = typed("run", study, "--store", store, "--workers", 1)
    assert status == 2
    assert out == ""
    assert says in err
    assert len([line for line in err.splitlines() if line.startswith("rankscope:")]) == 1
    assert "Traceback" not in err
    assert not store.exists()


def test_an_unwritable_store_is_one_line(typed: Typed, study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, err = typed("run", study, "--store", tmp_path / "file")
    assert status == 2
    assert "expected a folder for the store; found a file" in err
    status, _, err = typed("run", study, "--store", tmp_path / "file" / "store")
    assert status == 2
    assert "file" in err
    assert "Traceback" not in err


def test_a_store_of_another_study_is_one_line(typed: Typed, study: Path, tmp_path: Path) -> None:
    typed("run", study, "--store", tmp_path / "store", "--workers", 1)
    study.write_text(study.read_text().replace('name = "t"', 'name = "other"'))
    status, _, err = typed("run", study, "--store", tmp_path / "store", "--workers", 1)
    assert status == 2
    assert "holds study 't'; found study 'other'" in err


@pytest.mark.parametrize("command", ["status", "analyze", "report"])
def test_no_store_is_one_line(typed: Typed, tmp_path: Path, command: str) -> None:
    status, _, err = typed(command, tmp_path / "none")
    assert status == 2
    assert "expected a store" in err


def test_a_failed_trial_is_status_3_and_named(
    typed: Typed, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr("rankscope.train.loop.train_pack", broken)
    status, out, _ = typed("run", study, "--store", tmp_path / "store", "--workers", 1)
    assert status == 3
    assert "0 of 8 trials done, 8 failed" in out
    status, out, _ = typed("status", tmp_path / "store")
    assert status == 3
    assert "RuntimeError: no luck" in out


@pytest.mark.slow
def test_stopped_by_ctrl_c_and_started_again(typed: Typed, study: Path, tmp_path: Path) -> None:
    """A driver with two workers, stopped while they train: what had finished stays, the rest is
    trained once. A module of a library's name in the working folder disturbs nobody."""
    study.write_text(study.read_text().replace("steps = 8", "steps = 300"))
    (tmp_path / "transformers.py").write_text("raise SystemExit(9)")
    store = tmp_path / "store"
    command = [sys.executable, "-P", "-m", "rankscope.cli"]  # as the installed command starts
    process = subprocess.Popen(
        [*command, "run", study, "--store", store, "--workers", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: (
            signal.signal(signal.SIGINT, signal.SIG_DFL) and None
        ),  # a shell's background job ignores it
    )
    deadline = time.monotonic() + 120
    while not list(store.glob("trials/*/done.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To continue, type the same command" in err
    assert "Traceback" not in err
    log = Store(store).log
    log.refresh()
    assert not log.live  # workers have let go
    finished = {path: path.stat().st_mtime_ns for path in store.glob("trials/*/done.json")}
    assert 0 < len(finished) < 8
    assert typed("run", study, "--store", store, "--workers", 1)[1].startswith("8 of 8 trials done")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not list((store / "work").iterdir())


def test_python_runs_the_package_as_the_command():
    command = [sys.executable, "-m", "rankscope", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("rankscope 0")
