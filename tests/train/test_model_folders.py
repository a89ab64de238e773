"""Model folders that can't be trained on: one line that names the folder, soon, whatever is wrong
with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PerceiverConfig, PerceiverForSequenceClassification

from conftest import save_model
from rankscope.study.study_file import Study
from rankscope.study.tasks import TASKS
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.plan import forecast
from rankscope.sweep.run import run
from rankscope.train.loading import load_model, load_tokenizer, skeleton
from training import numbers, opened


def settings(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def reshaped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, folder / "model.safetensors")


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "found no config.json"),
    "no JSON": (text("config.json", "{"), "expected JSON"),
    "a list": (text("config.json", "[]"), "expected a JSON object; found list"),
    "nested too deep": (text("config.json", "[" * 100_000), "config.json"),
    "10^5000": (
        text("config.json", '{"model_type": "bert", "hidden_size": 1' + "0" * 5000 + "}"),
        "config.json",
    ),
    "no model_type": (settings(model_type=None), "expected a model_type; found None"),
    "unknown model_type": (settings(model_type="nothing"), "nothing"),
    "a vision model": (settings(model_type="vit"), "ViT"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "torn weights": (text("model.safetensors", "x" * 50), "model"),
    "another shape": (reshaped, "disagree about the shape"),
    "another width": (settings(hidden_size=24), "disagree about the shape"),
    "width as text": (settings(hidden_size="wide"), "hidden_size"),
    "width below zero": (settings(hidden_size=-16), "model"),
    "heads that do not divide": (settings(num_attention_heads=3), "heads"),
    "an unknown activation": (settings(hidden_act="none such"), "none such"),
    "more layers than the file": (
        settings(num_hidden_layers=3),
        "its file lacks 16 of the model's weights",
    ),
    "a million layers": (settings(num_hidden_layers=10**6), "found num_hidden_layers = 1000000"),
    "a million experts": (settings(num_experts=10**6), "found num_experts = 1000000"),
    "10^12 words": (settings(vocab_size=10**12), "found vocab_size = 1000000000000"),
}


@pytest.mark.parametrize("load", [skeleton, load_model])
@pytest.mark.parametrize("fault", WRONG)
def test_one_line_says_what_is_wrong(
    fault: str, load: Callable[..., object], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    edit, says = WRONG[fault]
    shutil.copytree(tiny_models["bert"], tmp_path / "bert")
    edit(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"^model '.*bert': expected a folder with ") as error:
        load(str(tmp_path / "bert"), TASKS["CoLA"])
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_doge_says_16384_experts_where_it_has_none(
    tiny_models: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(tiny_models["bert"], tmp_path / "bert")
    settings(num_experts=16_384)(tmp_path / "bert")
    assert skeleton(str(tmp_path / "bert"), TASKS["CoLA"]).config.num_experts == 16_384


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_one_line(
    content: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(tiny_models["bert"], tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"^model '.*bert': expected a folder with ") as error:
        load_tokenizer(str(tmp_path / "bert"))
    assert "\n" not in str(error.value)


def study(model: Path, data: Path) -> Study:
    return Study.parse(
        f"""
        name = "t"
        scientific = {{model = "{model}", task = "CoLA", method = "lora", rank = 2}}
        nuisance = {{learning_rate = 1e-2}}
        fixed = {{data = "{data}", steps = 2, batch_size = 8}}
        """
    )


def test_a_tokenizer_of_another_model_is_one_line(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_models["bert"], tmp_path / "bert")
    tokenizer = json.loads((tmp_path / "bert" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"cat": 20, "dog": 21}
    (tmp_path / "bert" / "tokenizer.json").write_text(json.dumps(tokenizer))
    inputs = StudyInputs(study(tmp_path / "bert", tiny_data))
    with pytest.raises(ValueError, match=r"expected a tokenizer of its 20 tokens; found token 21$"):
        inputs.encoded(inputs.trials[0])


def test_a_layer_drawn_with_the_head_is_said(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_models["bert"], tmp_path / "bert")
    tensors = load_file(tmp_path / "bert" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    asked = study(tmp_path / "bert", tiny_data)
    line = "its file lacks bert.pooler.dense: drawn at random, trained and saved with the head"
    assert line in forecast(StudyInputs(asked), None)
    store = run(asked, tmp_path / "store", quiet=True)
    assert line in capsys.readouterr().err
    (id,) = store.done_ids()
    about = json.loads((store.folder(id).path / "trial.json").read_text())
    assert about["drawn"] == line


def test_without_a_pooler_in_the_base_plain_peft_gives_the_metric_back(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    """transformers draws another pooler each time it opens such a base; the adapter brings its
    own."""
    base = tmp_path / "bert"
    shutil.copytree(tiny_models["bert"], base)
    tensors = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    asked = Study.parse(
        f"""
        name = "t"
        scientific = {{model = "{base}", task = "CoLA", method = "lora", rank = [1, 3]}}
        nuisance = {{learning_rate = [3e-3, 3e-2]}}
        fixed = {{data = "{tiny_data}", steps = 12, batch_size = 8, eval_every = 3}}
        """
    )
    store = run(asked, tmp_path / "store", quiet=True)
    validation = StudyInputs(asked).split("CoLA")[1]
    trained = {trial.id: trial for trial in StudyInputs(asked).trials}
    for id in store.done_ids():
        folder = store.folder(id)
        lines = {line["step"]: line for line in folder.metrics()}
        for name, step in {"best": folder.result()["best_step"], "last": 12}.items():
            torch.manual_seed(step)  # of the pooler that the base lacks
            model = opened(str(base), trained[id], folder.path / name)
            found = numbers(model, str(base), validation)
            assert found == pytest.approx({key: lines[step][key] for key in found}, abs=1e-5)
    poolers = [
        load_file(store.folder(id).path / "last" / "adapter_model.safetensors")
        for id in store.done_ids()
    ]
    name = "base_model.model.bert.pooler.dense.weight"
    assert len({float(found[name].sum()) for found in poolers}) == 4  # each trained its own


def test_a_model_without_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    """Perceiver's classifier is a part of its base: no adapter would train it."""
    config = PerceiverConfig(
        d_model=16, d_latents=16, num_latents=4, num_self_attends_per_block=1,
        num_self_attention_heads=2, num_cross_attention_heads=2, vocab_size=20,
        max_position_embeddings=40,
    )  # fmt: skip
    path = save_model(tmp_path / "perceiver", lambda: PerceiverForSequenceClassification(config))
    for load in (skeleton, load_model):
        with pytest.raises(ValueError, match="expected a head outside the base model; Perceiver"):
            load(path, TASKS["CoLA"])
