"""One trial by PEFT and transformers.Trainer, on our batches: what ``packed_vs_peft.py`` compares
with."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.optimizers import create_loraplus_optimizer
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rankscope.study.trial import CHANGES_BASE, Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.data import Encoded
from rankscope.train.model import stream
from rankscope.train.run import rows_of


class Alone(Trainer):
    """The Trainer as it is, on our batches: both sides see the same ones."""

    encoded: tuple[Encoded, Encoded]
    batches: list[list[int]]
    trial: Trial

    def create_optimizer(self, model: Any = None) -> Any:
        """The trial's, where it is not the Trainer's own."""
        trial = self.trial
        rate = {"lr": trial.learning_rate}
        if trial.optimizer == "muon":
            self.optimizer = MuonBeside(self.model, trial)
        elif trial.lora_plus_ratio is not None:
            self.optimizer = create_loraplus_optimizer(
                self.model, torch.optim.AdamW, loraplus_lr_ratio=trial.lora_plus_ratio,
                loraplus_weight_decay=trial.weight_decay, **rate
            )  # fmt: skip
        elif trial.optimizer == "sgd":
            decayed = set(self.get_decay_parameter_names(self.model))
            named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for n, p in named if (n in decayed) == decays],
                 "weight_decay": trial.weight_decay * decays}
                for decays in (True, False)
            ]  # fmt: skip
            self.optimizer = torch.optim.SGD(groups, **rate)
        else:
            return super().create_optimizer()
        return self.optimizer

    def get_train_dataloader(self) -> Any:
        train, _ = self.encoded
        return self._loader(train, batch_sampler=self.batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        _, validation = self.encoded
        return self._loader(validation, batch_size=64)

    def _loader(self, encoded: Encoded, **how: Any) -> Any:
        def collated(rows: list[int]) -> dict[str, torch.Tensor]:
            inputs, labels = encoded.batch(torch.tensor(rows))
            return {**inputs, "labels": labels}

        return self.accelerator.prepare(DataLoader(range(len(encoded)), collate_fn=collated, **how))  # type: ignore[arg-type]


class MuonBeside(torch.optim.AdamW):
    """``torch.optim.Muon`` on the factors, AdamW on the rest, one schedule for both."""

    def __init__(self, model: Any, trial: Trial) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        inside = [p for n, p in named if ".lora_" in n]
        rest = [p for n, p in named if ".lora_" not in n]
        settings = {"lr": trial.learning_rate, "weight_decay": trial.weight_decay}
        self.muon = torch.optim.Muon(inside, **settings)
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": trial.weight_decay},
            {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        ]
        super().__init__(groups, lr=trial.learning_rate)

    def step(self, closure: Any = None) -> Any:
        for group in self.muon.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self.muon.step()
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.muon.zero_grad(set_to_none)
        super().zero_grad(set_to_none)


class Seeded(TrainerCallback):
    """Dropout starts from the stream that a pack's starts from."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            torch.manual_seed(self.seed)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def peft_alone(trial: Trial, inputs: StudyInputs, start: Path, out: Path) -> tuple[float, float]:
    """One trial by PEFT and the Trainer. -> (seconds, final validation loss)"""
    train, validation = inputs.encoded(trial)
    steps, every = trial.total_steps(len(train)), trial.eval_every
    if not isinstance(every, int):  # "epoch"
        every = math.ceil(len(train) / trial.batch_size)
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=trial.batch_size,
        learning_rate=trial.learning_rate, weight_decay=trial.weight_decay,
        max_grad_norm=trial.max_grad_norm,
        lr_scheduler_type="linear", warmup_steps=math.ceil(trial.warmup_ratio * steps),
        eval_strategy="steps",
        eval_steps=every,
        logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        bf16=torch.cuda.is_available(), per_device_eval_batch_size=64,
    )  # fmt: skip
    began = time.perf_counter()
    base = AutoModelForSequenceClassification.from_pretrained(
        inputs.model_path(trial.model), num_labels=2, dtype=torch.float32
    )
    model: Any = PeftModel.from_pretrained(base, start, is_trainable=True)
    if trial.init_lora_weights in CHANGES_BASE:  # by PEFT itself; the head from the file
        heads = get_peft_model_state_dict(model)
        config = model.peft_config["default"]
        config.r, config.lora_alpha = config.r // 2, config.lora_alpha / 2
        config.init_lora_weights, config.inference_mode = trial.init_lora_weights, False
        model = get_peft_model(model.unload(), config)
        set_peft_model_state_dict(model, {n: p for n, p in heads.items() if ".lora_" not in n})
    trainer = Alone(
        model, arguments, compute_metrics=accuracy, train_dataset=range(len(train)),
        eval_dataset=range(len(validation)),
        callbacks=[Seeded(stream(trial.seed, "dropout").initial_seed())],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.encoded, trainer.trial = (train, validation), trial
    trainer.batches = [rows.tolist() for rows in rows_of(trial, train, steps)]
    trainer.train()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    return time.perf_counter() - began, losses[-1]
