"""PEFT's adapter_config.json: rank and scale of each layer, and which updates are not LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import regex

from rankscope.weights.limits import (
    LAYERS,
    PATTERN,
    PATTERN_SECONDS,
    PATTERNS,
    PATTERNS_SECONDS,
    REPEATS,
)
from rankscope.weights.matrix import Skipped, Stopwatch

T = TypeVar("T")

# Initialisations that first subtract s B0 A0 from the base: W' - W is then not s B A.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Those whose B0 A0 came from training data, or that quantised the rest: no file has the base that
# they left.
FOR_ONCE = ("corda", "lora_ga", "loftq")
# Settings with which PEFT's W' - W is not s B A (read in the sources of PEFT 0.21).
VARIANTS = {
    "use_qalora": "QA-LoRA pools the input before A",
    "use_bdlora": "BD-LoRA stores blocks of a block-diagonal factor",
    "arrow_config": "Arrow routes each token to different adapters: there is no single dW",
    "kasa_config": "KaSA truncates W and has a diagonal between B and A",
    "monteclora_config": "MonteCLoRA samples its factors",
}


@dataclass(frozen=True)
class LoraConfig:
    """The settings that determine dW, under PEFT's names."""

    path: Path
    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    base_model: str | None = None
    revision: str | None = None
    replicated: tuple[
        int, ...
    ] = ()  # layer_replication: layer of the adapted model -> layer of the base
    target_parameters: tuple[str, ...] = ()
    unlike_lora: str | None = None  # why W' - W is not s B A; None if it is
    mergeable: bool = True  # whether PEFT can rebuild W' from the base and the adapter alone
    watch: Stopwatch = field(
        default_factory=lambda: Stopwatch(PATTERNS_SECONDS), compare=False, repr=False
    )

    def rank_of(self, layer: str) -> int:
        """The rank that the configuration gives the layer."""
        return pattern_value(self.rank_pattern, layer, self.r, self.watch)

    def scale_of(self, layer: str, r: int) -> float:
        """s = alpha / r, or alpha / sqrt(r) with ``use_rslora``."""
        alpha = pattern_value(self.alpha_pattern, layer, self.lora_alpha, self.watch)
        return alpha / (math.sqrt(r) if self.use_rslora else r)

    def check(self, layer: str, r: int, *, has_magnitude: bool) -> None:
        """``ValueError``, one line, if a layer's factors are not what the configuration says of
        them: its scale, or its update, would be wrong."""
        if (expected := self.rank_of(layer)) != r:
            raise ValueError(
                f"{self.path}: expected r = {r} for {layer}, by its factors; found r = {expected}. "
                "Its scale would be wrong: set r or rank_pattern to what was trained."
            )
        if self.use_dora and not has_magnitude:
            raise ValueError(
                f"{self.path}: expected lora_magnitude_vector of {layer}, as use_dora = true says; "
                "found none. Save the adapter again, or set use_dora to what was trained."
            )

    def doubt_of(self, layer: str) -> str | None:
        """Why the scale may differ from the one in training; None if it cannot.

        The first matching key wins, and PEFT sorts the keys when it saves: in training another
        one may have won.
        """
        found = {
            key: value
            for key, value in self.alpha_pattern.items()
            if _matches(key, layer, self.watch)
        }
        if len(set(found.values())) < 2:
            return None
        return (
            f"alpha_pattern matches with {' and '.join(map(repr, found))}: the first in the "
            "file was taken"
        )


def pattern_value(
    pattern: Mapping[str, T], layer: str, default: T, watch: Stopwatch | None = None
) -> T:
    """PEFT's rule: ``(.*\\.)?(key)$``, a regular expression, and the first key that matches
    wins."""
    for key, value in pattern.items():
        if _matches(key, layer, watch or Stopwatch(PATTERNS_SECONDS)):
            return value
    return default


def _matches(key: str, layer: str, watch: Stopwatch) -> bool:
    try:
        with watch:
            found: object = _compiled(key).match(layer, timeout=PATTERN_SECONDS)
        if watch.left < 0:
            raise TimeoutError
    except TimeoutError as error:
        raise ValueError(
            "rank_pattern or alpha_pattern: expected a regular expression that matches a "
            "layer's name at once; "
            f"{key[:60]!r} took longer than {PATTERN_SECONDS:g} s on {layer[:60]}, or all "
            f"together than {PATTERNS_SECONDS:g} s."
        ) from error
    return found is not None


@lru_cache(maxsize=2 * PATTERNS)
def _compiled(key: str) -> regex.Pattern[str]:
    return regex.compile(rf"(.*\.)?({key})$")


def lora_config(path: Path, content: Mapping[str, Any]) -> LoraConfig:
    """Checks the content of adapter_config.json. Raises ``ValueError``, one line, if it is
    malformed."""
    base_model, revision = content.get("base_model_name_or_path"), content.get("revision")
    start = str(content.get("init_lora_weights", "")).lower()
    return LoraConfig(
        path=path,
        r=whole_number(path, "r", content.get("r", 8)),
        lora_alpha=number(path, "lora_alpha", content.get("lora_alpha", 8)),
        rank_pattern={
            key: whole_number(path, f"rank_pattern {key}", v)
            for key, v in _pattern(path, content, "rank_pattern")
        },
        alpha_pattern={
            key: number(path, f"alpha_pattern {key}", v)
            for key, v in _pattern(path, content, "alpha_pattern")
        },
        use_rslora=_truth(path, content, "use_rslora"),
        use_dora=_truth(path, content, "use_dora"),
        fan_in_fan_out=_truth(path, content, "fan_in_fan_out"),
        base_model=base_model if isinstance(base_model, str) and base_model else None,
        revision=revision if isinstance(revision, str) and revision else None,
        replicated=_replicated(path, content.get("layer_replication") or []),
        target_parameters=_names(path, content.get("target_parameters") or []),
        unlike_lora=_unlike_lora(content),
        mergeable=not start.startswith(FOR_ONCE) and not content.get("arrow_config"),
    )


def original_layer(layer: str, replicated: Sequence[int]) -> str | Skipped:
    """The layer of the base that a replicated layer shares its weight with:
    PEFT's ``layer_replication``."""
    found = re.search(r"(?<![^.])(?:layers|layer|h)\.(\d+)(?=\.)", layer) if replicated else None
    if found is None:
        return layer
    if int(found[1]) >= len(replicated):
        return Skipped(
            layer, f"W and W + dW: layer_replication makes {len(replicated)} layers, no more"
        )
    return f"{layer[: found.start(1)]}{replicated[int(found[1])]}{layer[found.end(1) :]}"


def not_low_rank(source: str, peft_type: object, why: str) -> ValueError:
    """The error for an adapter that has no B A."""
    return ValueError(
        f"{source}: not a low-rank update: expected peft_type LORA, found {peft_type}{why}"
    )


def _unlike_lora(content: Mapping[str, Any]) -> str | None:
    """Why no layer's W' - W is s B A; None if it is."""
    start = str(content.get("init_lora_weights", "")).lower()
    if start.startswith(FOR_ONCE):
        return (
            f"init_lora_weights {start!r} changed the base by training data or quantisation, "
            "so W' - W is not s B A, "
            "and no file tells what it is: merge it and measure the merged checkpoint against "
            "its base"
        )
    if start.startswith(CHANGES_BASE):
        return (
            f"init_lora_weights {start!r} changed the base before training, so W' - W is not s B A"
        )
    return next((why for setting, why in VARIANTS.items() if content.get(setting)), None)


def _truth(path: Path, content: Mapping[str, Any], name: str) -> bool:
    value = content.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{path}: expected {name} to be true or false; found {value!r:.40}.")
    return bool(value)


def _pattern(path: Path, content: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    pattern = content.get(name) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{path}: expected {name} to be an object; found {pattern!r:.60}.")
    if len(pattern) > PATTERNS:
        raise ValueError(
            f"{path}: expected at most {PATTERNS} keys in {name}; found {len(pattern)}."
        )
    for key in pattern:
        try:
            _check_size(key)
            _compiled(key)
        except (regex.error, ValueError, RecursionError, OverflowError, MemoryError) as error:
            raise ValueError(
                f"{path}: expected regular expressions in {name}; found {key!r:.80}: {error}."
            ) from error
    return list(pattern.items())


def _check_size(key: str) -> None:
    """``ValueError`` if compiling the regular expression would take seconds or gigabytes."""
    if len(key) > PATTERN:
        raise ValueError(f"{len(key)} characters, above {PATTERN}")
    repeats = 1
    for low, high in re.findall(r"\{(\d*)(?:,(\d*))?\}", key):
        repeats *= max([1, *(int(count[:9]) for count in (low, high) if count)])
        if repeats > REPEATS:
            raise ValueError(f"counted repeats of more than {REPEATS} together")


def _replicated(path: Path, ranges: object) -> tuple[int, ...]:
    """[[0, 4], [2, 5]] -> 0, 1, 2, 3, 2, 3, 4."""
    if not isinstance(ranges, list):
        ranges = [ranges]
    layers: list[int] = []
    for one in ranges:
        if not (isinstance(one, list) and len(one) == 2 and all(type(i) is int for i in one)):
            raise ValueError(
                f"{path}: expected layer_replication as [[start, end], ...]; found {one!r:.60}."
            )
        if not 0 <= one[0] <= one[1] <= LAYERS or len(layers) + one[1] - one[0] > LAYERS:
            raise ValueError(
                f"{path}: expected layer_replication to make {LAYERS} layers at most; found "
                f"more by {one!r:.60}."
            )
        layers += range(*one)
    return tuple(layers)


def _names(path: Path, names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path}: expected target_parameters to be a list of names; found {names!r:.60}."
        )
    return tuple(names)


def whole_number(path: Path, name: str, value: object) -> int:
    """A rank or a count from 1. ``ValueError``, one line, for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise ValueError(
            f"{path}: expected {name:.80} to be a whole number from 1; found {value!r:.40}."
        )
    return value


def number(path: Path, name: str, value: object) -> float:
    """A finite number. ``ValueError``, one line, for anything else."""
    try:
        finite = type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer of 400 digits
        finite = False
    if not finite:
        raise ValueError(f"{path}: expected {name:.80} to be a number; found {value!r:.40}.")
    assert isinstance(value, int | float)
    return value
