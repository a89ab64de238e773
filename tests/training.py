"""Training one trial alone, by PEFT and torch, and a pack of trials: the two sides of the equality
tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_scheduler

from conftest import TARGETS
from rankscope.study.packing import packs
from rankscope.study.study_file import Study
from rankscope.study.tasks import TASKS
from rankscope.study.trial import Trial
from rankscope.train.adapters import AdapterPack
from rankscope.train.data import Encoded, encode, read_split
from rankscope.train.full import FullPack
from rankscope.train.loading import load_tokenizer
from rankscope.train.model import stream
from rankscope.train.one_at_a_time import PeftTrial
from rankscope.train.run import Run, rows_of

TASK, CPU = TASKS["CoLA"], torch.device("cpu")


def trials_of(
    architecture: str, model: str, *, method: str = "lora", ranks: str = '[1, 4, 16, "d"]',
    d: int = 32, steps: int = 30, targets: Sequence[str] = (), fixed: str = "",
) -> list[Trial]:  # fmt: skip
    """Mixed ranks, scale rules and rates. The full fine-tune is a pack of one."""
    study = Study.parse(
        f"""
        name = "t"
        [scientific]
        model = "{model}"
        task = "CoLA"
        method = "{method}"
        rank = {ranks}
        scaling = ["alpha/r", "alpha/sqrt(r)", "alpha"]
        [nuisance]
        learning_rate = [1e-3, 1e-2]
        seed = 5
        [fixed]
        batch_size = 8
        steps = {steps}
        eval_every = 10
        target_modules = {list(targets) or TARGETS[architecture]}
        lora_dropout = 0.1
        {fixed}
        """
    )
    trials = study.trials({model: d})
    if method == "full":
        return trials[:1]
    (pack,) = packs(
        [t for i, t in enumerate(trials) if (i // 2 + i) % 2 == 0], size=99
    )  # each rule with each rank
    return pack


def encoded(model: str, data: Path, split: str = "train") -> Encoded:
    return encode(read_split(str(data), TASK, split), TASK, load_tokenizer(model), max_length=32)


def run_of(
    trials: list[Trial], model: str, train: Encoded, dtype: torch.dtype = torch.float32
) -> Run:
    kind = FullPack if trials[0].method == "full" else AdapterPack
    return Run(kind(trials, model=model, task=TASK, device=CPU, dtype=dtype), TASK, train, train)


def run_alone(trial: Trial, model: str, train: Encoded, dtype: torch.dtype = torch.float32) -> Run:
    """One trial through PEFT's own layers."""
    pack = PeftTrial([trial], model=model, task=TASK, device=CPU, dtype=dtype)
    return Run(pack, TASK, train, train)


def losses_of(run: Run, *, stop: int | None = None) -> Tensor:
    """The rest of a run's steps, or those up to ``stop``: (steps, K)"""
    found = []
    rows = rows_of(run.pack.trials[0], run.train, run.total)
    for step in range(run.done + 1, (stop or run.total) + 1):
        found.append(run.step(rows[step - 1], step))
        run.done = step
    return torch.stack(found)


def saved(run: Run, k: int, folder: Path) -> dict[str, Tensor]:
    """What trial k's adapter file would hold now."""
    run.pack.save(k, [rows.values for rows in run.pack.params], folder)
    return load_file(folder / "adapter_model.safetensors")


def plain_model(model: str | Path, dtype: torch.dtype) -> Any:
    """As Hugging Face has it, with its own eager attention."""

    return AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=2, dtype=dtype, attn_implementation="eager"
    )


def peft_model(model: str, adapter: Path, dtype: torch.dtype) -> PeftModel:
    return PeftModel.from_pretrained(plain_model(model, dtype), adapter, is_trainable=True).to(
        dtype
    )


def alone(model: Any, trial: Trial, train: Encoded) -> Tensor:
    """The obvious loop: torch's optimisers, Hugging Face's schedule, torch's clipping and dropout.
    (steps,) losses"""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizers = optimizers_of(model, trial)
    steps = trial.total_steps(len(train))
    warmup = math.ceil(trial.warmup_ratio * steps)
    schedules = [get_scheduler(trial.lr_scheduler_type, o, warmup, steps) for o in optimizers]
    torch.manual_seed(stream(trial.seed, "dropout").initial_seed())
    model.train()
    losses = []
    for rows in rows_of(trial, train, steps):
        inputs, labels = train.batch(rows)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], trial.max_grad_norm)
        for part in (*optimizers, *schedules):
            part.step()
        model.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def optimizers_of(model: Any, trial: Trial) -> list[torch.optim.Optimizer]:
    """torch's and PEFT's own, on weights of PEFT's or Hugging Face's own model."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    adam: dict[str, Any] = {
        "lr": trial.learning_rate, "betas": trial.adam_betas, "eps": trial.adam_epsilon
    }  # fmt: skip
    if trial.lora_plus_ratio is not None:
        plus = {"loraplus_lr_ratio": trial.lora_plus_ratio}
        plus["loraplus_weight_decay"] = trial.weight_decay
        return [create_loraplus_optimizer(model, torch.optim.AdamW, **adam, **plus)]
    inside = [
        p
        for n, p in named
        if p.ndim == 2
        and not {"classifier", "score", "modules_to_save"} & {*n.split(".")}
        and "embed" not in n
        and ".wte" not in n
        and ".wpe" not in n
    ]
    # as Trainer.get_decay_parameter_names has it: not biases and norms
    magnitudes = [p for n, p in named if "lora_magnitude_vector" in n]

    def decays(p: Tensor) -> bool:
        return p.ndim > 1 or any(p is q for q in magnitudes)

    muon = inside if trial.optimizer == "muon" else []
    rest = [p for _, p in named if not any(p is q for q in muon)]
    groups = [
        {"params": [p for p in rest if decays(p)], "weight_decay": trial.weight_decay},
        {"params": [p for p in rest if not decays(p)], "weight_decay": 0.0},
    ]
    if trial.optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=trial.learning_rate)]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, **adam)]
    if muon:
        settings = {"lr": trial.learning_rate, "weight_decay": trial.weight_decay}
        found.append(torch.optim.Muon(muon, **settings))
    return found


def adapters(model: PeftModel) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in get_peft_model_state_dict(model).items()}


def opened(model: str, trial: Trial, folder: Path) -> Any:
    """What a trial saved, by plain transformers and PEFT."""
    if trial.method == "full":
        return AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation="eager"
        )
    base = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=2, attn_implementation="eager"
    )
    return PeftModel.from_pretrained(base, folder)


def numbers(model: Any, path: str, validation: pd.DataFrame) -> dict[str, float]:
    """Loss and Matthews correlation, over batches of rows of one length: without padding."""
    tokenizer, names = (
        AutoTokenizer.from_pretrained(path),
        ("input_ids", "attention_mask", "token_type_ids"),
    )
    found, labels = [], []
    for _, rows in validation.groupby(
        [len(tokenizer(text)["input_ids"]) for text in validation["sentence"]]
    ):
        inputs = tokenizer(rows["sentence"].tolist(), return_tensors="pt")
        with torch.no_grad():
            found.append(model.eval()(**{k: v for k, v in inputs.items() if k in names}).logits)
        labels += rows["label"].tolist()
    logits, truth = torch.cat(found).double(), torch.tensor(labels)
    guess = logits.argmax(1)
    counts = [[int(((guess == i) & (truth == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    (tn, fn), (fp, tp) = counts
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    mcc = (tp * tn - fp * fn) / below if below else 0.0
    return {"eval_loss": float(F.cross_entropy(logits, truth)), "matthews_correlation": mcc}
