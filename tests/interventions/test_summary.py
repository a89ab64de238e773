"""What `rankscope intervene` prints: means over seeds, never over unlike settings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import rankscope as rs
from conftest import save_tiny_model, sentences, write_tsv
from rankscope.interventions.summary import show, summary
from studies import study_text

STUDY = study_text(
    "model", "CoLA", rank=2, lora_alpha=[2.0, 16.0], learning_rate=3e-2, seed=[0, 1], data="data",
    steps=4, target_modules=["query", "value"],
)  # fmt: skip


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Two seeds in each of two settings."""
    root = tmp_path_factory.mktemp("settings")
    save_tiny_model(root / "model", "roberta")
    write_tsv(root / "data", "CoLA", "train", sentences(32))
    write_tsv(root / "data", "CoLA", "validation", sentences(12, start=32))
    (root / "study.toml").write_text(STUDY)
    study = rs.Study.load(root / "study.toml")
    rs.run(study, root / "runs", quiet=True)
    found = rs.intervene(
        root / "runs", study=study, families=["scale"], rows=12, refit=0, quiet=True
    )
    return found[found["method"].eq("lora")].reset_index(drop=True)


def test_unlike_settings_are_lines_of_their_own(
    edited: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = summary(edited)
    assert set(lines["setting"]) == {"lora_alpha=2", "lora_alpha=16"}
    assert lines["trials"].eq(2).all()
    one = edited[edited["setting"].eq("lora_alpha=16")]
    for level, part in one.groupby("level"):
        line = lines[lines["setting"].eq("lora_alpha=16") & lines["level"].eq(level)].squeeze()
        assert line["value"] == pytest.approx(part["value"].mean(), abs=1e-12)
        assert line["ratio"] == pytest.approx(np.exp(part["log_drift"]).median(), abs=1e-12)
    show(edited)
    printed = capsys.readouterr().out
    assert "setting" in printed
    assert "lora_alpha=16" in printed


def test_one_setting_takes_no_column(
    edited: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    show(edited[edited["setting"].eq("lora_alpha=2")])
    assert "setting" not in capsys.readouterr().out
