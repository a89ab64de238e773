"""A study whose model and data are named as the hub names them, against a hub that runs here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from conftest import sentences
from hub_server import COMMIT, serve
from rankscope.store.store import Store
from studies import study_text

STUDY = study_text(
    "FacebookAI/roberta-base", ["CoLA", "STS-B", "MNLI"], rank=[1, "d"], data="hub", steps=4,
    eval_every=2, max_length=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, str]) -> Path:
    """nyu-mll/glue's layout, and a model under RoBERTa-base's name."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny_models["roberta"], root / "models" / "FacebookAI" / "roberta-base")
    splits = {
        "cola": ["train", "validation"],
        "stsb": ["train", "validation"],
        "mnli": ["train", "validation_matched", "validation_mismatched"],
    }
    for task, names in splits.items():
        folder = root / "datasets" / "nyu-mll" / "glue" / task
        folder.mkdir(parents=True)
        for start, split in enumerate(names):
            frame = glue_rows(task, start=100 * start)
            frame.to_parquet(folder / f"{split}-00000-of-00001.parquet", index=False)
    return root


def glue_rows(task: str, *, start: int) -> pd.DataFrame:
    """32 rows with that task's columns."""
    rows = sentences(32, start=start).assign(idx=range(32))
    if task == "cola":
        return rows
    one, two = ("premise", "hypothesis") if task == "mnli" else ("sentence1", "sentence2")
    label = [i % 3 for i in range(32)] if task == "mnli" else [i % 11 / 2 for i in range(32)]
    return pd.DataFrame(
        {one: rows["sentence"], two: rows["sentence"][::-1].to_list(), "label": label}
    )


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


def rankscope(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own: the hub's client reads ``HF_ENDPOINT`` when it is
    imported."""
    command = [sys.executable, "-m", "rankscope.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def test_models_and_data_come_from_the_hub_once(hub: Path, study: Path, tmp_path: Path) -> None:
    store, home = tmp_path / "store", str(tmp_path / "home")
    with serve(hub) as (address, fetched):
        first = rankscope("run", study, "--store", store, HF_ENDPOINT=address, HF_HOME=home)
        assert first.returncode == 0, first.stderr
        assert "9 of 9 trials done" in first.stdout
        assert "nyu-mll/glue/mnli/validation_matched-00000-of-00001.parquet" in fetched
        assert len(fetched) == len(set(fetched))  # nothing twice
    trials = Store(store).trials()
    assert set(trials["metric"]) == {"matthews_correlation", "pearson", "accuracy"}
    mnli = trials.loc[trials["task"].eq("MNLI"), "trial"]
    metrics = Store(store).metrics().set_index("trial")
    assert metrics.loc[mnli, ["accuracy", "accuracy_mismatched"]].notna().all(axis=None)
    assert metrics.drop(mnli)["accuracy_mismatched"].isna().all()
    assert Store(store).fingerprints["model/FacebookAI/roberta-base"] == COMMIT
    again = rankscope(
        "plan", study, "--store", store, HF_HUB_OFFLINE="1", HF_HOME=home
    )  # from the cache
    assert again.returncode == 0, again.stderr
    assert "0 of 9 trials to train" in again.stdout


@pytest.fixture
def empty_hub(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "empty" / "models").mkdir(parents=True)
    with serve(tmp_path / "empty") as (address, _):
        yield address


def test_what_the_hub_lacks_is_said_in_one_line(
    empty_hub: str, study: Path, tmp_path: Path
) -> None:
    found = rankscope("plan", study, HF_ENDPOINT=empty_hub, HF_HOME=str(tmp_path / "home"))
    assert found.returncode == 2
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("rankscope: ")]
    assert "FacebookAI/roberta-base" in line
    assert "Traceback" not in found.stderr
