"""The settings beside a LoRA file: its scale, and which fused projections were adapted.

Letters: r rank, s scale, g adapted projections of a fused weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from rankscope.weights.checkpoints import read_json
from rankscope.weights.factor_forms import Fusion, blocks, equal_blocks, interleaved
from rankscope.weights.limits import FUSED_ROWS, YAML_BYTES
from rankscope.weights.lora_config import LoraConfig, number, whole_number
from rankscope.weights.tensors import one_line

UNPLACED = "which of the layer's projections were adapted (enable_lora) is not in the file"
LITGPT_FUSED = re.compile(r"(^|\.)h\.\d+\.attn\.(attn|qkv)$")
LITGPT = ("hyperparameters.yaml", "model_config.yaml", "lit_config.json")
# AdapterHub's settings with which dW is not s B A, and their plain values.
GATES = {"composition_mode": "add", "use_gating": False, "vera_d": None, "vera_b": None}


class Settings(Protocol):
    """The settings of one file, whoever wrote it."""

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """s, and a note if it is a guess. ``ValueError`` if r is not the configured rank."""

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """Which rows of the layer the ``rows`` rows of B belong to, and a note if it is a guess.

        ``g`` projections were adapted; the layer has ``total`` rows, None if unknown.
        """


@dataclass(frozen=True)
class Given:
    """No configuration: the user's alpha, or scale 1 with the note ``guess``."""

    alpha: float | None
    guess: str

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """alpha / r; or 1."""
        return (1.0, self.guess) if self.alpha is None else (self.alpha / r, None)

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """Equal blocks, as in loralib: the whole layer if they fill it; two of three are the first
        and the last, as in loralib's GPT-2."""
        size = rows // g
        if rows % g or LITGPT_FUSED.search(layer):
            raise ValueError(
                f"{layer}: expected a configuration with the sizes of {g} fused projections of "
                f"{rows} rows; found none. Put LitGPT's {LITGPT[0]} and {LITGPT[1]} beside the file"
            )
        if total in (None, rows):
            return equal_blocks([True] * g, size), None
        if (g, total) == (2, 3 * size):
            note = "taken to be the first and the last of three (query and value)"
            return equal_blocks([True, False, True], size), note
        return equal_blocks([True] * g, size), UNPLACED


@dataclass(frozen=True)
class PeftSettings:
    """PEFT's adapter_config.json, which torchtune writes as well."""

    config: LoraConfig
    content: Mapping[str, Any]

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """The scale by PEFT's rules, and a doubt about it, if any."""
        _check_rank(self.config.path, layer, r, self.config.rank_of(layer))
        return self.config.scale_of(layer, r), self.config.doubt_of(layer)

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """PEFT up to 0.2: ``enable_lora`` says which of equal blocks."""
        enabled = self.content.get("enable_lora")
        if not (isinstance(enabled, list) and all(type(one) is bool for one in enabled)):
            return Given(None, "").fusion(layer, g, rows, total)
        return _enabled_blocks(self.config.path, "enable_lora", enabled, layer, g, rows), None


@dataclass(frozen=True)
class AdapterHub:
    """The adapter_config.json of the ``adapters`` library: ``config`` with r, alpha and
    attn_matrices."""

    path: Path
    r: int
    alpha: float
    matrices: tuple[str, ...]

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """alpha / r."""
        _check_rank(self.path, layer, r, self.r)
        return self.alpha / r, None

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """Three equal blocks, q, k and v."""
        enabled = [name in self.matrices for name in ("q", "k", "v")]
        return _enabled_blocks(self.path, "attn_matrices", enabled, layer, g, rows), None


@dataclass(frozen=True)
class Mlx:
    """MLX's adapter_config.json: ``lora_parameters`` with rank and scale."""

    path: Path
    r: int
    s: float
    note: str | None

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """The scale itself: MLX does not divide by r."""
        _check_rank(self.path, layer, r, self.r)
        return self.s, self.note

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """MLX fuses nothing."""
        raise ValueError(
            f"{self.path}: expected one rank in both factors of {layer}; found {g} times B's in A."
        )


@dataclass(frozen=True)
class LitGpt:
    """LitGPT's hyperparameters and model configuration: q, k and v of unequal sizes in one
    weight."""

    path: Path
    r: int
    alpha: float
    enabled: tuple[bool, bool, bool]
    heads: int
    groups: int
    head_size: int

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """alpha / r."""
        _check_rank(self.path, layer, r, self.r)
        return self.alpha / r, None

    def fuses(self, layer: str) -> bool:
        """Whether the layer holds q, k and v."""
        return LITGPT_FUSED.search(layer) is not None

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """``qkv`` stacks the three.

        ``attn``, up to LitGPT 0.5, holds them by query groups; but if all three are adapted,
        LitGPT adds B's rows in their own order.
        """
        sizes = [self.heads * self.head_size] + [self.groups * self.head_size] * 2
        adapted = sum(size for size, used in zip(sizes, self.enabled, strict=True) if used)
        if sum(self.enabled) != g or adapted != rows or sum(sizes) > FUSED_ROWS:
            raise ValueError(
                f"{self.path}: expected the configuration of {layer}, {g} projections with {rows} "
                f"rows; found {sum(self.enabled)} with {adapted}, of {sum(sizes)} in all."
            )
        if layer.endswith(".attn.attn") and not all(self.enabled):
            return interleaved(self.heads, self.groups, self.head_size, self.enabled), None
        return blocks(sizes, self.enabled), None


def adapterhub(path: Path, content: Mapping[str, Any]) -> AdapterHub:
    """Reads adapter_config.json. ``ValueError`` if it does not describe a LoRA."""
    config = content.get("config")
    parts: list[Any] = [config]
    if isinstance(config, dict) and isinstance(config.get("configs"), list):
        parts = config["configs"]  # several methods together
    settings = [part for part in parts if isinstance(part, dict)]
    found = [part for part in settings if part.get("architecture") == "lora"]
    if len(found) != 1:
        kinds = ", ".join(str(part.get("architecture"))[:40] for part in settings[:8]) or "none"
        raise ValueError(
            f"{path}: not a low-rank update: expected one AdapterHub config of architecture "
            f"lora; found {kinds}."
        )
    (part,) = found
    for setting, plain in GATES.items():
        if part.get(setting, plain) != plain:
            raise ValueError(
                f"{path}: not a low-rank update: expected {setting} {plain!r}; found "
                f"{part[setting]!r:.40}."
            )
    names = part.get("attn_matrices") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path}: expected attn_matrices to be a list of names; found {names!r:.40}."
        )
    r, alpha = part.get("r", 8), part.get("alpha", 8)
    return AdapterHub(path, whole_number(path, "r", r), number(path, "alpha", alpha), tuple(names))


def mlx(path: Path, content: Mapping[str, Any]) -> Mlx:
    """Reads adapter_config.json."""
    given = content.get("lora_parameters")
    if not isinstance(given, dict):
        raise ValueError(
            f"{path}: expected lora_parameters with rank and scale; found {given!r:.40}."
        )
    r = whole_number(path, "rank", given.get("rank"))
    if "scale" not in given and "alpha" not in given:
        raise ValueError(
            f"{path}: expected scale in lora_parameters; found {', '.join(map(str, given))[:80]}."
        )
    s = number(path, "scale", given.get("scale", 1.0))
    if "alpha" not in given:
        return Mlx(path, r, s, None)
    s *= number(path, "alpha", given["alpha"]) / r
    note = f"scale and alpha given: scale alpha / r = {s:g} taken, as MLX did while it had alpha"
    return Mlx(path, r, s, note)


def litgpt(folder: Path) -> LitGpt | None:
    """Reads the files beside ``lit_model.pth.lora``; None if they do not say enough."""
    content: dict[str, Any] = {}
    found = [folder / name for name in LITGPT if (folder / name).is_file()]
    for path in found:
        content |= read_json(path) if path.suffix == ".json" else _read_yaml(path)
    if "lora_r" not in content or "n_head" not in content:
        return None
    path = found[0]

    def count(name: str, value: object = None) -> int:
        return whole_number(path, name, value or content.get(name))

    heads = count("n_head")
    groups = count("n_query_groups", content.get("n_query_groups") or heads)
    if heads % groups:
        raise ValueError(
            f"{path}: expected n_head to be a multiple of n_query_groups; found {heads} and "
            f"{groups}."
        )
    query, key, value = (bool(content.get(f"lora_{name}")) for name in ("query", "key", "value"))
    return LitGpt(
        path,
        count("lora_r"),
        number(path, "lora_alpha", content.get("lora_alpha", 16)),
        (query, key, value),
        heads,
        groups,
        count("head_size", content.get("head_size") or count("n_embd") // heads),
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > YAML_BYTES:
        raise ValueError(f"{path}: expected at most {YAML_BYTES} bytes of YAML; found {size}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected YAML; found {one_line(error)}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected settings by name; found {type(content).__name__}.")
    return content


def _enabled_blocks(
    path: Path, setting: str, enabled: Sequence[bool], layer: str, g: int, rows: int
) -> Fusion:
    if sum(enabled) != g or rows % g:
        raise ValueError(
            f"{path}: expected {setting} with {g} projections for {layer}, as its factors have; "
            f"found {sum(enabled)} of {len(enabled)}."
        )
    return equal_blocks(enabled, rows // g)


def _check_rank(path: Path, layer: str, r: int, expected: int) -> None:
    if r != expected:
        raise ValueError(
            f"{path}: expected r = {r} for {layer}, as its factors have; found r = {expected}. "
            "Its scale would be wrong: set it to what was trained."
        )
