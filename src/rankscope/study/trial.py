"""One training run, fully specified, and its id."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Method = Literal["lora", "full"]
Scaling = Literal[
    "alpha/r", "alpha/sqrt(r)", "alpha"
]  # the last: s does not depend on r (PEFT: alpha = c r)
Precision = Literal["float32", "bfloat16"]

ALL_LINEAR = "all-linear"  # PEFT's value of target_modules: every linear layer but the head
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Init = Literal[True, "gaussian", "orthogonal", "pissa", "olora"]
CHANGES_BASE = ("pissa", "olora")  # by what they start from: dW of trials has rank 2r
Optimizer = Literal["adamw", "sgd", "muon"]
_YOUNGER = (  # than the first stores
    "precision",
    "lr_scheduler_type",
    "init_lora_weights",
    "use_dora",
    "optimizer",
    "lora_plus_ratio",
    "validation_split",
)
# what a study may list beside rank and scaling rule; of a full fine-tune only the last three
LISTED = (
    "init_lora_weights",
    "lora_alpha",
    "lora_plus_ratio",
    "use_dora",
    "target_modules",
    "optimizer",
    "lr_scheduler_type",
)
OF_FULL = LISTED[-3:]

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
GAP = "\0"
GAP_CODE = _CANONICAL.encode(GAP)


def digest(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Trial(BaseModel):
    """One training run, fully specified: equal configurations have equal ids, on every machine."""

    model_config = STRICT

    model: str
    task: str
    method: Method
    rank: int | None  # None: full fine-tuning
    scaling: Scaling | None
    learning_rate: float
    seed: int
    batch_size: int
    epochs: float | None
    steps: int | None
    max_length: int
    train_rows: int | None
    validation_rows: int | None
    eval_every: int | Literal["epoch"]
    target_modules: list[str]
    lora_alpha: float | None
    lora_dropout: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    adam_betas: tuple[float, float]
    adam_epsilon: float
    precision: Precision | None = None
    lr_scheduler_type: Schedule = "linear"
    init_lora_weights: Init = True
    use_dora: bool = False
    optimizer: Optimizer = "adamw"
    lora_plus_ratio: float | None = None  # how many times B's rate is A's
    validation_split: float | None = None
    setting: str = ""  # see ``setting_of``; no part of the id

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON (sorted keys, no blanks)."""
        return digest(self.canonical())

    def canonical(self, **others: Any) -> str:
        """The configuration as JSON, with ``others`` in the place of its own values. What is
        younger than the first stores is left out where it has its default: their trials keep their
        ids."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name in _YOUNGER:
            if values[name] == type(self).model_fields[name].default:
                del values[name]
        del values["setting"]
        return _CANONICAL.encode(values | others)

    @property
    def scale(self) -> float:
        """s of dW = s B A: alpha/r, alpha/sqrt(r) (rank-stabilised; Kalajdzievski 2023), or alpha
        itself."""
        assert self.rank is not None
        assert self.lora_alpha is not None
        divisor = {"alpha/r": self.rank, "alpha/sqrt(r)": math.sqrt(self.rank), "alpha": 1.0}
        return self.lora_alpha / divisor[self.scaling or "alpha/r"]

    def precision_on(self, device: str) -> Precision:
        """Of matrix products, on "cpu" or "cuda"."""
        return self.precision or ("bfloat16" if device == "cuda" else "float32")

    def total_steps(self, rows: int) -> int:
        """Optimiser steps of this trial on ``rows`` training rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * math.ceil(rows / self.batch_size)))


def setting_of(values: Mapping[str, Any], listed: Mapping[str, str] = MappingProxyType({})) -> str:
    """What tells a trial's kind from others of its rank and scaling rule: those of ``LISTED`` that
    have not their default, as "lora_plus_ratio=4.0, optimizer=sgd". Unlike ones are never pooled.

    ``lora_alpha`` and ``target_modules`` have no default for all models: they are told only as the
    study lists them, in ``listed``.

    Args:
        values: the trial's configuration.
        listed: what the study's own words are: ``lora_alpha`` -> "2r".
    """
    parts = []
    for name in LISTED:
        if name in ("lora_alpha", "target_modules"):
            told = listed.get(name)
        else:
            default = Trial.model_fields[name].default
            value = values.get(name, default)
            told = None if value == default else str(value).lower()
        if told is not None:
            parts.append(f"{name}={told}")
    return ", ".join(parts)
