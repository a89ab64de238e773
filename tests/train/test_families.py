"""Every family of models: a pack of four unlike trials equals PEFT alone, and what it
saves gives its numbers back.

The oracle is PEFT and transformers: initial weights drawn here by the documented rule, torch's own
AdamW, and each saved folder opened by ``PeftModel.from_pretrained`` or
``AutoModelForSequenceClassification.from_pretrained``, evaluated without padding.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from conftest import save_model
from families import FAMILIES
from rankscope.store.trial_dir import TrialDir
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.loop import train_pack
from rankscope.train.model import stream
from studies import study_text
from training import CPU, TASK, alone, numbers, opened

STEPS = 5
# beside every family with plain LoRA: starts that change the base, and DoRA. DeBERTa's trials train
# one at a time, as those of DoRA with dropout do
PISSA, OLORA = 'init_lora_weights = "pissa"', 'init_lora_weights = "olora"'
DORA = "use_dora = true\nlora_dropout = 0.0"
METHODS = {
    "roberta, pissa": PISSA,
    "roberta, olora": OLORA,
    "roberta, dora": DORA,
    "roberta, pissa and dora": f"{PISSA}\n{DORA}",
    "mpnet, pissa": PISSA,
    "gpt2, pissa": PISSA,
    "gpt2, dora": DORA,
    "llama, olora": OLORA,
    "llama, dora": DORA,
    "deberta-v2, pissa": PISSA,
    "bert, dora": "use_dora = true\nlora_dropout = 0.1",
}
PLAIN = "lora_dropout = 0.1"


def study(family: str, model: str, data: Path, method: str) -> Study:
    """Two ranks, two rates, two scaling rules, of which ``pack`` takes four trials; and a full
    fine-tune."""
    text = study_text(
        model, "CoLA", rank=[2, 5], scaling=["alpha/r", "alpha/sqrt(r)"],
        learning_rate=[1e-2, 3e-2], data=data, steps=STEPS, eval_every=3,
        target_modules=list(FAMILIES[family].targets),
        own=method if "lora_dropout" in method else f"{method}\n{PLAIN}",
    )  # fmt: skip
    return Study.parse(text)


@pytest.fixture(scope="module", params=[*FAMILIES, *METHODS])
def trained(
    request: pytest.FixtureRequest, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """-> family, model folder, inputs, the trials with their folders"""
    family = request.param.split(",")[0]
    root = tmp_path_factory.mktemp(family)
    model = save_model(root / "model", FAMILIES[family].model)
    inputs = StudyInputs(study(family, model, tiny_data, METHODS.get(request.param, "")))
    lora = [trial for trial in inputs.trials if trial.method == "lora"]
    packs = [[lora[i] for i in (0, 3, 5, 6)], [t for t in inputs.trials if t.method == "full"][:1]]
    packs = packs[:1] if request.param in METHODS else packs
    apart = request.param.startswith("deberta") or "0.1" in METHODS.get(request.param, "")
    folders = []
    for pack in packs:
        train, validation = inputs.encoded(pack[0])
        dirs = [TrialDir(root / trial.id) for trial in pack]
        for trial, folder in zip(pack, dirs, strict=True):
            folder.begin(trial, provenance={})
        train_pack(
            pack, dirs, lambda steps: None, model=model, task=TASK, train=train,
            validation=validation, device=CPU
        )  # fmt: skip
        folders += list(zip(pack, dirs, strict=True))
        if request.param in METHODS:
            assert ("one_at_a_time" in (dirs[0].path / "trial.json").read_text()) == apart
    return family, model, inputs, folders


def test_best_and_last_give_their_numbers_back(trained: Any) -> None:
    _, path, inputs, folders = trained
    validation = inputs.split("CoLA")[1]
    for trial, folder in folders:
        lines = {line["step"]: line for line in folder.metrics()}
        best = folder.result()["best_step"]
        for name, step in {"best": best, "last": STEPS}.items():
            found = numbers(opened(path, trial, folder.path / name), path, validation)
            assert found == pytest.approx({key: lines[step][key] for key in found}, abs=1e-5), (
                name,
                trial,
            )
        assert math.isfinite(lines[STEPS]["train_loss"])


def begun(path: str, trial: Trial) -> Any:
    """The trial before its first step, by PEFT: heads and factors drawn from its stream by the
    documented rule."""
    base = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=2, attn_implementation="eager"
    )
    base.config.pad_token_id = 1
    generator, prefix = stream(trial.seed, "init"), base.base_model_prefix
    heads = [
        name for name, part in base.named_children() if name != prefix and [*part.parameters()]
    ]
    with torch.no_grad():
        for name in heads:
            for module in base.get_submodule(name).modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(
                        0, getattr(base.config, "initializer_range", 0.02), generator=generator
                    )
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
    if trial.method == "full":
        return base
    conv = any(isinstance(module, Conv1D) for module in base.modules())
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=trial.rank, lora_alpha=trial.lora_alpha,
        use_rslora=trial.scaling == "alpha/sqrt(r)",
        lora_dropout=trial.lora_dropout, target_modules=trial.target_modules, fan_in_fan_out=conv,
        modules_to_save=heads, init_lora_weights=trial.init_lora_weights, use_dora=trial.use_dora,
    )  # fmt: skip
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("lora_A.default") and trial.init_lora_weights is True:
                bound = 1 / math.sqrt(module.weight.shape[1])
                module.weight.uniform_(-bound, bound, generator=generator)
    return model


def test_a_trial_of_the_pack_equals_peft_alone(trained: Any) -> None:
    """In its losses: a weight whose gradient is rounding noise may go anywhere, and nothing depends
    on it."""
    _, path, inputs, folders = trained
    last = []
    for trial, folder in folders:
        model = begun(path, trial)
        losses = alone(model, trial, inputs.encoded(trial)[0]).tolist()
        first, second = folder.metrics()
        assert first["train_loss"] == pytest.approx(sum(losses[:3]) / 3, abs=1e-5), trial
        assert second["train_loss"] == pytest.approx(sum(losses[3:]) / 2, abs=1e-5), trial
        found = numbers(model, path, inputs.split("CoLA")[1])
        assert second["eval_loss"] == pytest.approx(found["eval_loss"], abs=2e-5), trial
        last.append(losses[-1])
    assert len({round(loss, 6) for loss in last}) == len(
        last
    )  # they differ: equality above says something
