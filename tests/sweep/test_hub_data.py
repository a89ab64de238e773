"""A data set of the hub as a task of one's own, against a hub that runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from conftest import sentences
from hub_server import serve
from rankscope.store.store import Store
from studies import study_text

CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train-*}
  - {split: test, path: plain/test-*}
- config_name: other
  data_files:
  - {split: train, path: other/train-*}
---
"""
TASK = """
[task.letters]
data = "org/letters"
config = "plain"
text = "sentence"
label = "kind"
validation = "test"
"""


def test_from_a_data_set_of_the_hub_to_a_store(tmp_path: Path, tiny_models: dict[str, str]) -> None:
    folder = tmp_path / "hub" / "datasets" / "org" / "letters"
    for name in ("plain", "other"):
        (folder / name).mkdir(parents=True)
    for start, split in enumerate(("train", "test")):
        rows = sentences(24, start=24 * start)
        kinds = rows["label"].map({0: "yes", 1: "no"})
        frame = pd.DataFrame({"sentence": rows["sentence"], "kind": kinds})
        frame.to_parquet(folder / "plain" / f"{split}-00000-of-00001.parquet", index=False)
    frame.to_parquet(folder / "other" / "train-00000-of-00001.parquet", index=False)
    (folder / "README.md").write_text(CARD)
    (tmp_path / "study.toml").write_text(
        study_text(tiny_models["roberta"], "letters", method="lora", rank=[1, 4], steps=4, own=TASK)
    )
    with serve(tmp_path / "hub") as (address, fetched):
        command = ["run", tmp_path / "study.toml", "--store", tmp_path / "store", "--workers", "1"]
        found = subprocess.run(
            [sys.executable, "-m", "rankscope.cli", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")},
        )
    assert found.returncode == 0, found.stderr
    assert "org/letters/plain/train-00000-of-00001.parquet" in fetched
    assert not [name for name in fetched if "/other/" in name]
    store = Store(tmp_path / "store")
    assert store.trials()["metric"].tolist() == ["accuracy"] * 2
    trial = store.trials()["trial"][0]
    saved = tmp_path / "store" / "trials" / trial / "best" / "config.json"
    assert '"id2label": {\n    "0": "no",\n    "1": "yes"' in saved.read_text()
