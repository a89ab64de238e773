"""A metric before and after, on the same rows: the interval by an exact case, and through
``resize``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from scipy import stats
from transformers import AutoModelForSequenceClassification

from conftest import sentences, write_tsv
from rankscope.cli import main
from rankscope.interventions.beside import Answers
from rankscope.report.paired import paired


def test_the_interval_is_that_of_paired_rows():
    """Before, 300 of 400 rows are right; after, 20 of these are lost and 8 others won. The change
    of accuracy is -0.03, its standard deviation by hand."""
    labels = np.ones(400)
    before, after = np.ones(400), np.ones(400)
    before[:100] = 0
    after[8:100] = 0
    after[100:120] = 0
    found = paired(
        Answers("accuracy", 0.75, before, labels), Answers("accuracy", 0.72, after, labels)
    )
    assert (found.change, found.unlike, found.rows) == (pytest.approx(-0.03), 28, 400)
    half = stats.norm.ppf(0.975) * np.std(after - before) / np.sqrt(400)
    assert found.low == pytest.approx(-0.03 - half, abs=0.003)
    assert found.high == pytest.approx(-0.03 + half, abs=0.003)
    assert "no difference" not in found.line("t")
    same = paired(*[Answers("accuracy", 0.75, before, labels)] * 2)
    assert (same.change, same.low, same.high, same.unlike) == (0, 0, 0, 0)
    assert "no difference is shown" in same.line("t")
    other = paired(*[Answers("own_function", 0.75, before, labels)] * 2)
    assert (other.low, other.high) == (None, None)
    assert "no interval for own_function" in other.line("t")


@pytest.fixture
def trained(tiny_models: dict[str, str], tmp_path: Path) -> tuple[str, Path, Path]:
    """A base, an adapter with a head, and rows of CoLA's form."""
    torch.manual_seed(0)
    base = tiny_models["roberta"]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **settings))
        with torch.no_grad():
            for name, p in adapted.named_parameters():
                if "lora_B" in name or "classifier" in name:
                    p.normal_()
        adapted.save_pretrained(tmp_path / "adapter")
    write_tsv(tmp_path / "data", "CoLA", "train", sentences(20))
    write_tsv(tmp_path / "data", "CoLA", "validation", sentences(40, start=20))
    return base, tmp_path / "adapter", tmp_path / "data"


def test_resize_says_the_metric_before_and_after(
    trained: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base, adapter, data = trained
    typed = ["resize", str(adapter), "--base", base, "--task", "CoLA", "--data", str(data)]
    assert main([*typed, "--to", str(tmp_path / "same"), "--rank", "4", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept["task"]["change"] == kept["task"]["unlike"] == 0
    assert kept["error"] == 0
    assert (kept["task"]["rows"], kept["task"]["metric"]) == (40, "matthews_correlation")
    assert main([*typed, "--to", str(tmp_path / "out"), "--rank", "1", "--rows", "30"]) == 0
    assert "CoLA, matthews_correlation on 30 rows: " in capsys.readouterr().out
    # what cannot be evaluated is said before anything is written
    for more, says in (
        (["--task", "CoLA"], "needs both --base MODEL and --task TASK"),
        (["--base", base, "--task", "Nope"], "Nope"),
        (["--base", base, "--task", "CoLA", "--data", str(tmp_path)], "CoLA"),
        (["--base", base, "--task", "CoLA", "--data", str(data), "--rows", "1"], "rows"),
    ):
        new = tmp_path / "new"
        assert main(["resize", str(adapter), "--to", str(new), "--rank", "1", *more]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.strip().count("\n") == 0
        assert not new.exists()
