"""Hu et al. 2021 on RoBERTa: batch, epochs, alpha and sequence length per model size and GLUE task,
by two names.

"paper" is Table 9 of arXiv 2106.09685, appendix D.1, main rows. "scripts" is what the released
scripts of microsoft/LoRA run: the same batch on each of 8 GPUs (CoLA on RoBERTa-base: of 2), alpha
16 for both sizes, and for RoBERTa-large other lengths and epochs in two rows. A study that leaves
these parameters out gets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["paper", "scripts"]


@dataclass(frozen=True)
class Recipe:
    batch_size: int
    epochs: float
    lora_alpha: float
    max_length: int


_BASE = {
    "MNLI": (16, 30),
    "SST-2": (16, 60),
    "MRPC": (16, 30),
    "CoLA": (32, 80),
    "QNLI": (32, 25),
    "QQP": (16, 25),
    "RTE": (32, 80),
    "STS-B": (16, 40),
}
_LARGE = {
    "MNLI": (4, 10, 128),
    "SST-2": (4, 10, 128),
    "MRPC": (4, 20, 512),
    "CoLA": (4, 20, 128),
    "QNLI": (4, 10, 512),
    "QQP": (4, 20, 512),
    "RTE": (8, 20, 512),
    "STS-B": (8, 30, 512),
}
_SCRIPTS_LARGE = _LARGE | {"SST-2": (8, 10, 512), "STS-B": (4, 10, 128)}
_GPUS = {("base", "CoLA"): 2}  # else 8


def recipe_for(*, model: str, task: str, name: Name = "paper") -> Recipe:
    """The recipe of that row; RoBERTa-base's for models that are not "...-large", 16 x 30 for
    unlisted tasks."""
    large = model.rstrip("/").endswith("-large") and task in _LARGE
    table = _SCRIPTS_LARGE if name == "scripts" else _LARGE
    batch, epochs, length = table[task] if large else (*_BASE.get(task, (16, 30)), 512)
    if name == "scripts" and task in _LARGE:
        return Recipe(
            batch * _GPUS.get(("large" if large else "base", task), 8), epochs, 16, length
        )
    return Recipe(batch, epochs, lora_alpha=16 if large else 8, max_length=length)
