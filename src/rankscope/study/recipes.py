"""Hu et al. 2021, Table 9: batch, epochs, alpha and sequence length per model size and GLUE task.

A study that leaves these out gets them. Source: arXiv 2106.09685, appendix D.1 (RoBERTa; the main rows).
"""

from __future__ import annotations

from dataclasses import dataclass


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


def recipe_for(*, model: str, task: str) -> Recipe:
    """The recipe of that row; RoBERTa-base's for models that are not "...-large", 16 x 30 for unlisted tasks."""
    if model.rstrip("/").endswith("-large") and task in _LARGE:
        batch, epochs, length = _LARGE[task]
        return Recipe(batch, epochs, lora_alpha=16, max_length=length)
    batch, epochs = _BASE.get(task, (16, 30))
    return Recipe(batch, epochs, lora_alpha=8, max_length=512)
