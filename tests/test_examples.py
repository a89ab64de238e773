"""The examples: from a file of the user's to a report, in one command each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from language import mean_loss
from rankscope import lab
from rankscope.cli import main
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.metrics import score

EXAMPLES = Path(__file__).parents[1] / "examples"


def trained(name: str, store: Path, *options: str) -> tuple[StudyInputs, Store]:
    study = EXAMPLES / name / "study.toml"
    assert main(["run", str(study), "--store", str(store), "--workers", "1", *options]) == 0
    return StudyInputs(Study.load(study)), Store(store)


def answers_of(folder: Path, inputs: StudyInputs, task: str) -> tuple[torch.Tensor, dict[int, str]]:
    """Of a saved adapter, by PEFT and transformers alone: (1, N, C), and the names of classes."""
    named = (folder / "config.json").is_file()
    config = AutoConfig.from_pretrained(folder if named else lab.ENCODER)
    if not named:
        config.num_labels = 1
    base = AutoModelForSequenceClassification.from_pretrained(lab.ENCODER, config=config)
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    rows = inputs.split(task)[1]
    tokenizer = AutoTokenizer.from_pretrained(lab.ENCODER)
    columns = [rows[column].tolist() for column in inputs.tasks[task].text]
    with torch.no_grad():
        return model(**tokenizer(*columns, padding=True, return_tensors="pt")).logits[None], (
            config.id2label
        )


@pytest.mark.parametrize(
    ("name", "task", "options", "names"),
    [
        ("letters", "letters", ["--report"], ["complaint", "order", "praise", "question"]),
        ("pairs", "pairs", [], ["follows", "unknown"]),
        ("reviews", "stars", [], ["LABEL_0"]),
    ],
)
@pytest.mark.slow
def test_from_a_file_to_a_report(
    name: str, task: str, options: list[str], names: list[str], tmp_path: Path
) -> None:
    inputs, store = trained(name, tmp_path / "store", *options)
    assert (tmp_path / "store" / "report.html").is_file() == bool(options)
    trials = store.trials()
    assert trials["status"].eq("done").all()
    trial = trials[trials["method"].eq("lora")].sort_values("best").iloc[-1]
    found, labels = answers_of(store.path / "trials" / trial["trial"] / "best", inputs, task)
    assert list(labels.values()) == names
    truth = torch.from_numpy(inputs.split(task)[1]["label"].to_numpy(copy=True))
    (again,) = score(found, truth, inputs.tasks[task])
    lines = store.metrics()
    kept = lines[lines["trial"].eq(trial["trial"]) & lines["step"].eq(trial["best_step"])].iloc[0]
    assert kept[trial["metric"]] == trial["best"]
    # not the rank correlation: rounding may swap two neighbours
    metric = "pearson" if task == "stars" else trial["metric"]
    assert again[metric] == pytest.approx(kept[metric], abs=1e-5)
    assert trial["metric"] == inputs.study.task[task].chosen_metric


@pytest.mark.slow
def test_from_a_chat_to_a_report(tmp_path: Path) -> None:
    """Answers are learnt; plain PEFT gives the best evaluation's loss back."""
    inputs, store = trained("chats", tmp_path / "store", "--report")
    page = (tmp_path / "store" / "report.html").read_text("utf-8")
    assert "eval loss, lower is better" in page
    trials = store.trials()
    assert trials["status"].eq("done").all()
    assert set(trials["metric"]) == {"eval_loss"}
    assert (trials["best"] < trials["untrained"] - 0.5).all()
    trial = trials[trials["method"].eq("lora")].sort_values("best").iloc[0]
    base = AutoModelForCausalLM.from_pretrained(EXAMPLES / "chats" / "model")
    model = peft.PeftModel.from_pretrained(base, store.path / "trials" / trial["trial"] / "best")
    (planned,) = [t for t in inputs.trials if t.id == trial["trial"]]
    validation = inputs.encoded(planned)[1]
    found = mean_loss(model, [validation.batch(torch.arange(len(validation)))])
    assert found == pytest.approx(trial["best"], abs=1e-5)


@pytest.mark.slow
def test_from_an_id_of_the_hub_to_a_report(tmp_path: Path) -> None:
    hub, store = EXAMPLES / "hub", tmp_path / "store"
    command = ["run", hub / "study.toml", "--store", store, "--workers", "1", "--report"]
    found = subprocess.run(
        [sys.executable, hub / "serve.py", sys.executable, "-m", "rankscope.cli", *command],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert (store / "report.html").is_file()
    trials = Store(store).trials()
    assert trials["status"].eq("done").all()
    assert set(trials["metric"]) == {"f1_macro"}
    assert trials["best"].max() > 0.5  # of four classes
    saved = store / "trials" / trials["trial"][0] / "best" / "config.json"
    assert "complaint" in saved.read_text(encoding="utf-8")


def test_a_plan_says_what_a_language_model_learns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(EXAMPLES / "chats" / "study.toml")]) == 0
    out = capsys.readouterr().out
    assert "chats: 128 + 32 rows (train + validation), loss of the answers" in out
    assert "metric eval_loss, lower is better" in out
    assert "nan %" not in out


def test_a_plan_shows_classes_and_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(EXAMPLES / "letters" / "study.toml")]) == 0
    out = capsys.readouterr().out
    assert "letters: 192 + 48 rows (train + validation), 4 classes: 0 = complaint: 48 + 12" in out
    assert "metric f1_macro" in out
    assert "tokens a row" in out
    assert "validation rows have a text that is in train, too" in out  # letters come from templates


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["measure", "figures"])
def test_a_notebook_runs_and_is_kept_without_outputs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    book = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    source = Path(lab.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(source), *sys.path]))
    where = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(book, timeout=240, kernel_name="python3", resources=where).execute()
    shown = [cell.outputs[-1].data for cell in code if cell.outputs]
    assert len(shown) >= len(code) - 1
    last = {"measure": "text/html", "figures": "image/png"}[name]
    assert last in shown[-1]
