"""PEFT's adapter_config.json: rank and scale of each layer, and what isn't a LoRA update at all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rankscope.weights.checkpoints import read_json

T = TypeVar("T")

# Initialisations that take -s B0 A0 out of the base first: dW against the pretrained W is not s B A.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings with which PEFT's W' - W is not s B A (read in the sources of PEFT 0.21).
VARIANTS = {
    "use_qalora": "QA-LoRA pools the input before A",
    "use_bdlora": "BD-LoRA stores blocks of a block-diagonal factor",
    "arrow_config": "Arrow routes each token to other adapters: there is no one dW",
    "kasa_config": "KaSA truncates W and has a diagonal between B and A",
    "monteclora_config": "MonteCLoRA samples its factors",
}


@dataclass(frozen=True)
class LoraConfig:
    """The settings that decide what dW is, under PEFT's own names."""

    path: Path
    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    base_model: str | None = None
    replicated: bool = False
    target_parameters: bool = False
    unlike_lora: str | None = None

    def rank_of(self, layer: str) -> int:
        """The rank that the configuration gives the layer."""
        return pattern_value(self.rank_pattern, layer, self.r)

    def scale_of(self, layer: str, r: int) -> float:
        """s = alpha / r, or alpha / sqrt(r) with ``use_rslora``."""
        alpha = pattern_value(self.alpha_pattern, layer, self.lora_alpha)
        return alpha / (math.sqrt(r) if self.use_rslora else r)

    def doubt_of(self, layer: str) -> str | None:
        """Why the scale may differ from the one in training; None where it can't.

        The first key that matches wins, and PEFT sorts the keys when it saves: another one may have won in
        training.
        """
        found = {key: value for key, value in self.alpha_pattern.items() if _matches(key, layer)}
        if len(set(found.values())) < 2:
            return None
        return f"alpha_pattern matches with {' and '.join(map(repr, found))}: the first in the file was taken"


def pattern_value(pattern: Mapping[str, T], layer: str, default: T) -> T:
    """PEFT's rule: ``(.*\\.)?(key)$``, a regular expression, and the first key that matches wins."""
    for key, value in pattern.items():
        if _matches(key, layer):
            return value
    return default


def _matches(key: str, layer: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", layer) is not None


def read_lora_config(path: Path) -> LoraConfig:
    """Reads and checks adapter_config.json.

    Raises ``ValueError``, one line, where it is malformed or the adapter is no LoRA.
    """
    content = read_json(path)
    peft_type = content.get("peft_type")
    if peft_type != "LORA":
        raise ValueError(
            f"{path.parent}: not a low-rank update: expected peft_type LORA, found {peft_type}. "
            "Merge it into its base (merge_and_unload, save_pretrained) and type: "
            "rankscope measure MERGED --base MODEL"
        )
    base_model = content.get("base_model_name_or_path")
    return LoraConfig(
        path=path,
        r=_rank(path, "r", content.get("r", 8)),
        lora_alpha=_alpha(path, "lora_alpha", content.get("lora_alpha", 8)),
        rank_pattern={
            key: _rank(path, f"rank_pattern {key}", v) for key, v in _pattern(path, content, "rank_pattern")
        },
        alpha_pattern={
            key: _alpha(path, f"alpha_pattern {key}", v)
            for key, v in _pattern(path, content, "alpha_pattern")
        },
        use_rslora=bool(content.get("use_rslora")),
        fan_in_fan_out=bool(content.get("fan_in_fan_out")),
        base_model=base_model if isinstance(base_model, str) and base_model else None,
        replicated=bool(content.get("layer_replication")),
        target_parameters=bool(content.get("target_parameters")),
        unlike_lora=_unlike_lora(content),
    )


def _unlike_lora(content: Mapping[str, Any]) -> str | None:
    """Why no layer's W' - W is s B A; None where it is."""
    start = str(content.get("init_lora_weights", "")).lower()
    if start.startswith(CHANGES_BASE):
        return f"init_lora_weights {start!r} changed the base before training, so W' - W is not s B A"
    return next((why for setting, why in VARIANTS.items() if content.get(setting)), None)


def _pattern(path: Path, content: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    pattern = content.get(name) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{path}: expected {name} to be an object; found {pattern!r}.")
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise ValueError(
                f"{path}: expected regular expressions in {name}; found {key!r}: {error}."
            ) from error
    return list(pattern.items())


def _rank(path: Path, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: expected {name} to be a whole number from 1; found {value!r}.")
    return value


def _alpha(path: Path, name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{path}: expected {name} to be a number; found {value!r}.")
    return value
