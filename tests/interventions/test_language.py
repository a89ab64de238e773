"""Edits of language models: losses against plain transformers on the merged model, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import rankscope as rs
from language import mean_loss, peft_of, save_language_model, study_of
from rankscope.cli import main
from rankscope.store.store import Store
from rankscope.sweep.inputs import StudyInputs

FAMILIES = ["scale", "top"]


@pytest.fixture(scope="module", params=[("llama", "text"), ("gpt2", "text"), ("llama", "messages")])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six adapters and two full fine-tunes of a tiny language model."""
    name, rows = request.param
    root = tmp_path_factory.mktemp(name)
    model = save_language_model(root / name, name)
    study = study_of(root / "study", model, rows, methods='["lora", "full"]')
    rs.run(study, root / "runs", quiet=True)
    return root


def batches(root: Path) -> list[tuple[dict[str, Tensor], Tensor]]:
    study = Store(root / "runs").study
    inputs = StudyInputs(study.model_copy(update={"folder": root / "study"}), workers=1)
    validation = inputs.encoded(inputs.trials[0])[1]
    return [validation.batch(torch.arange(k, k + 3)) for k in range(0, len(validation), 3)]


def test_losses_are_those_of_the_merged_model(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained / "study")
    store, rows = Store(trained / "runs"), batches(trained)
    recorded = store.trials().set_index("trial").groupby("method").head(2)
    table = rs.intervene(
        trained / "runs", families=FAMILIES, rows=1000, quiet=True, trials=[*recorded.index]
    )
    assert set(table["metric"]) == {"eval_loss"}
    assert set(table["trial"]) == set(recorded.index)
    own = table[table["family"].eq("scale") & table["level"].eq(1)].set_index("trial")
    for id in recorded.index:  # unedited, it is the trial as training evaluated it
        assert own.loc[id, "value"] == pytest.approx(recorded.loc[id, "last"], rel=1e-5)
    for id in recorded.index[recorded["method"].eq("lora")]:
        model = recorded.loc[id, "model"]
        part = table[table["trial"].eq(id)]
        merged = peft_of(model, store.folder(id).path / "last", torch.float64).merge_and_unload()
        base = peft_of(model, store.folder(id).path / "last", torch.float64).unload()
        names = [name for name, p in merged.named_parameters()]
        base_state = dict(base.named_parameters())
        updates = {
            name: (p - base_state[name]).detach() for name, p in merged.named_parameters()
            if not p.equal(base_state[name])
        }  # fmt: skip
        assert 0 < len(updates) < len(names)
        for line in part.itertuples():
            with torch.no_grad():
                for name, dW in updates.items():
                    dict(merged.named_parameters())[name].copy_(
                        base_state[name] + edited(dW, line.family, line.level)
                    )
            assert line.value == pytest.approx(mean_loss(merged, rows), abs=1e-5)
            assert line.loss == line.value


def edited(dW: Tensor, family: str, level: float) -> Tensor:
    if family == "scale":
        return level * dW
    U, s, Vh = torch.linalg.svd(dW, full_matrices=False)
    return (U * s.where(torch.arange(len(s)) < level, 0)) @ Vh


def test_the_command_and_what_analyze_makes_of_it(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained / "study")
    id = Store(trained / "runs").done_ids()[0]
    command = ["intervene", str(trained / "runs"), "--families", "scale", "--rows", "6"]
    assert main([*command, "--trials", id]) == 0
    assert "eval_loss: lower is better" in capsys.readouterr().out
    assert main(["analyze", str(trained / "runs")]) == 0
    told = capsys.readouterr().out
    assert "H6" in told
    assert "no bootstrap" not in told


def test_an_adapter_alone_needs_the_study_that_has_its_task(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its rows are those of its store; `resize` compares on them, too."""
    monkeypatch.chdir(trained / "study")
    store = Store(trained / "runs")
    trial = store.trials().query("method == 'lora' and rank == 3").iloc[0]
    adapter, file = store.folder(trial["trial"]).path / "last", trained / "study" / "own.toml"
    file.write_text(
        f"""name = "own"
        scientific = {{ model = "{trial["model"]}", task = "rows", rank = 1 }}
        nuisance = {{ learning_rate = 1e-3 }}
        fixed = {{ batch_size = 4, steps = 1 }}
        [task.rows]
        kind = "{store.study.task["rows"].kind}"
        train = "train.jsonl"
        validation = "validation.jsonl"
        """
    )
    source = ["intervene", str(adapter), "--base", trial["model"], "--task", "rows"]
    assert main(source) == 2
    assert "--study" in capsys.readouterr().err
    of_store = rs.intervene(
        trained / "runs", families=["scale"], trials=[trial["trial"]], quiet=True
    )
    alone = rs.intervene(
        adapter, base=trial["model"], task="rows", study=rs.Study.load(file), families=["scale"],
        quiet=True,
    )  # fmt: skip
    assert alone["value"].tolist() == pytest.approx(of_store["value"].tolist(), rel=1e-6)
    resize = ["resize", str(adapter), "--base", trial["model"], "--task", "rows", "--rank", "1"]
    assert main([*resize, "--study", str(file), "--to", str(tmp_path / "small")]) == 0
    assert "rows, eval_loss on 12 rows (lower is better): " in capsys.readouterr().out
