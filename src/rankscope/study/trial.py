"""One training run, fully specified, and its id."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Literal

import regex
from pydantic import BaseModel, ConfigDict

Method = Literal["lora", "full"]
Scaling = Literal[
    "alpha/r", "alpha/sqrt(r)", "alpha"
]  # the last: s does not depend on r (PEFT: alpha = c r)
Precision = Literal["float32", "bfloat16"]

ALL_LINEAR = "all-linear"  # PEFT's value of target_modules: every linear layer but the head
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Init = Literal[True, "gaussian", "orthogonal", "pissa", "olora"]
# their initial factors are subtracted from the base, so dW has rank 2r
CHANGES_BASE = ("pissa", "olora")
Optimizer = Literal["adamw", "sgd", "muon"]
_ADDED = (  # after the first stores were written
    "precision",
    "lr_scheduler_type",
    "init_lora_weights",
    "use_dora",
    "optimizer",
    "lora_plus_ratio",
    "validation_split",
    "rank_pattern",
)
# what a study may list beside rank and scaling rule; of a full fine-tune only the last three
LISTED = (
    "init_lora_weights",
    "lora_alpha",
    "lora_plus_ratio",
    "use_dora",
    "rank_pattern",
    "target_modules",
    "optimizer",
    "lr_scheduler_type",
)
OF_FULL = LISTED[-3:]

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
SECONDS = 0.2  # of one expression of ``rank_pattern`` on one name
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
    rank_pattern: dict[str, int] = {}  # regular expression for layers -> their rank, as PEFT's
    setting: str = ""  # see ``setting_of``; no part of the id

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON (sorted keys, no blanks)."""
        return digest(self.canonical())

    def canonical(self, **others: Any) -> str:
        """The configuration as JSON, with ``others`` replacing its own values. Settings that were
        added after the first stores are left out if they have their default, so that old ids
        stay."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name in _ADDED:
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

    @property
    def largest_rank(self) -> int:
        """The largest rank of any layer; 0 for full fine-tuning."""
        return max([self.rank or 0, *self.rank_pattern.values()])

    def rank_of(self, layer: str) -> int:
        """The rank of a layer by ``rank_pattern``, else ``rank``; 0 for full fine-tuning."""
        return rank_in(self.rank_pattern, layer) or self.rank or 0

    def at(self, layer: str) -> Trial:
        """The trial as one layer has it: with that layer's rank everywhere, and so its scale."""
        if not self.rank_pattern:
            return self
        return self.model_copy(update={"rank": self.rank_of(layer), "rank_pattern": {}})

    def precision_on(self, device: str) -> Precision:
        """The precision of matrix products, on "cpu" or "cuda"."""
        return self.precision or ("bfloat16" if device == "cuda" else "float32")

    def total_steps(self, rows: int) -> int:
        """Optimiser steps of this trial on ``rows`` training rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * math.ceil(rows / self.batch_size)))


def rank_in(pattern: Mapping[str, int], layer: str) -> int | None:
    """The rank that a ``rank_pattern`` gives a layer, None if no expression stands for it.

    PEFT's rule (``get_pattern_key``): an expression stands for the whole name or its last parts.
    PEFT takes the first that matches; here all that match must agree, since a configuration has no
    order. ``ValueError`` where they do not.
    """
    ranks = {rank for expression, rank in pattern.items() if _stands_for(expression, layer)}
    if len(ranks) > 1:
        raise ValueError(
            f"rank_pattern: expected one rank for {layer}; found {sorted(ranks)}, by different "
            "expressions. Write their names further out"
        )
    return ranks.pop() if ranks else None


def _stands_for(expression: str, layer: str) -> bool:
    try:
        return _compiled(expression).match(layer, timeout=SECONDS) is not None
    except TimeoutError:
        raise ValueError(
            f"rank_pattern: expected an expression that matches a name at once; {expression!r:.60} "
            f"took longer than {SECONDS:g} s on {layer}"
        ) from None


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> regex.Pattern[str]:
    return regex.compile(rf"(.*\.)?({expression})$")


def setting_of(values: Mapping[str, Any], listed: Mapping[str, str] = MappingProxyType({})) -> str:
    """Names the settings that distinguish a trial from others of its rank and scaling rule: those
    of ``LISTED`` that differ from their default, as "lora_plus_ratio=4.0, optimizer=sgd". Trials of
    different settings are never pooled.

    ``lora_alpha`` and ``target_modules`` have no general default: they are named only if the study
    lists them.

    Args:
        values: the trial's configuration.
        listed: such settings, as the study writes them: ``lora_alpha`` -> "2r".
    """
    parts = []
    for name in LISTED:
        if name in ("lora_alpha", "target_modules"):
            told = listed.get(name)
        else:
            default = Trial.model_fields[name].default
            value = values.get(name, default)
            told = None if value == default else _told(value)
        if told is not None:
            parts.append(f"{name}={told}")
    return ", ".join(parts)


def _told(value: Any) -> str:
    """A setting in a word: of a pattern the extreme ranks, and what tells it from other
    patterns."""
    if isinstance(value, Mapping):
        return (
            f"{min(value.values())}-{max(value.values())} #{digest(_CANONICAL.encode(value))[:6]}"
        )
    return str(value).lower()
