"""Output folders of real trainers: transformers' Trainer with PEFT, and TRL's SFTTrainer, on tiny
models."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

from conftest import sentences

LORA = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}


def classified(model: str, start: int, count: int) -> datasets.Dataset:
    """Rows of CoLA's form, encoded to one length."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = sentences(count, start=start)
    encoded = tokenizer(list(rows["sentence"]), padding="max_length", max_length=12)
    return datasets.Dataset.from_dict({**encoded, "labels": [int(x) for x in rows["label"]]})


def accuracy(predictions: Any) -> dict[str, float]:
    return {"accuracy": float((predictions[0].argmax(-1) == predictions[1]).mean())}


def trainer_run(
    model: str, out: Path, *, rank: int | None = 2, rate: float = 1e-2, seed: int = 3,
    steps: int = 6, **more: Any
) -> Trainer:  # fmt: skip
    """Trains with PEFT (``rank``) or in full (None); losses are logged at other steps than
    evaluations. -> the trainer, when it has ended"""
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    if rank is not None:
        network = peft.get_peft_model(network, peft.LoraConfig(r=rank, lora_alpha=8, **LORA))
    given: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "logging_steps": 3, "max_steps": steps, "learning_rate": rate, "seed": seed,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "use_cpu": True,
        "report_to": [], "disable_tqdm": True, "weight_decay": 0.02,
    } | more  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            network,
            TrainingArguments(str(out), **given),
            train_dataset=classified(model, 0, 40),
            eval_dataset=classified(model, 40, 24),
            compute_metrics=accuracy,
        )
        trainer.train()
    return trainer


def sft_run(
    model: str, out: Path, *, rank: int | None = 2, rate: float = 1e-2, seed: int = 0,
    steps: int = 6, **more: Any
) -> Any:  # fmt: skip
    """TRL's SFTTrainer on a Llama: texts of the tiny vocabulary; nothing but losses is logged."""
    import trl

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(model)
    texts = [f"{text} ." for text in sentences(40)["sentence"]]
    given: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3,
        "logging_steps": 2, "max_steps": steps, "learning_rate": rate, "seed": seed,
        "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "report_to": [],
        "disable_tqdm": True, "max_length": 16, "dataset_num_proc": None,
    } | more  # fmt: skip
    lora = rank and peft.LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.SFTTrainer(
            network,
            args=trl.SFTConfig(str(out), **given),
            train_dataset=datasets.Dataset.from_dict({"text": texts[:30]}),
            eval_dataset=datasets.Dataset.from_dict({"text": texts[30:]}),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=lora or None,
        )
        trainer.train()
    return trainer
