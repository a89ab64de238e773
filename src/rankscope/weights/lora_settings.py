"""What lies beside a LoRA file and says its scale and which of fused projections were adapted.

Letters: r rank, s scale, g adapted projections of a fused weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from rankscope.weights.checkpoints import read_json
from rankscope.weights.fused import Fusion, blocks, equal_blocks, interleaved
from rankscope.weights.limits import YAML_BYTES
from rankscope.weights.lora_config import LoraConfig
from rankscope.weights.tensors import one_line

UNPLACED = "which of the layer's projections were adapted (enable_lora) is not in the file"
LITGPT_FUSED = re.compile(r"(^|\.)h\.\d+\.attn\.(attn|qkv)$")
LITGPT = ("hyperparameters.yaml", "model_config.yaml", "lit_config.json")


class Settings(Protocol):
    """Of a whole file."""

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """s, and what must be said of it. ``ValueError`` where r is not what the configuration
        says."""

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """Where the ``rows`` rows of B of ``g`` projections stand in the layer, of ``total`` rows
        if that is known, and what must be said of it."""


@dataclass(frozen=True)
class Given:
    """No configuration: the user's alpha, or a guess that the note names."""

    alpha: float | None
    guess: str

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """alpha / r; or 1."""
        return (1.0, self.guess) if self.alpha is None else (self.alpha / r, None)

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """Equal blocks, as loralib has them: all where they fill the layer; of three the first and
        the last, as loralib's own GPT-2."""
        size = rows // g
        if rows % g or LITGPT_FUSED.search(layer):
            raise ValueError(
                f"{layer}: expected a configuration that tells the sizes of {g} fused "
                f"projections with {rows} rows; "
                f"found none. Put LitGPT's {LITGPT[0]} and {LITGPT[1]} beside the file"
            )
        if total in (None, rows):
            return equal_blocks([True] * g, size), None
        if (g, total) == (2, 3 * size):
            said = "taken to be the first and the last of three (query and value)"
            return equal_blocks([True, False, True], size), said
        return equal_blocks([True] * g, size), UNPLACED


@dataclass(frozen=True)
class PeftSettings:
    """PEFT's adapter_config.json, which torchtune writes, too."""

    config: LoraConfig
    content: Mapping[str, Any]

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """By PEFT's rules."""
        if (expected := self.config.rank_of(layer)) != r:
            raise _wrong_rank(self.config.path, layer, r, expected)
        return self.config.scale_of(layer, r), self.config.doubt_of(layer)

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """PEFT up to 0.2: ``enable_lora`` says which of equal blocks."""
        enabled = self.content.get("enable_lora")
        if not (isinstance(enabled, list) and all(type(one) is bool for one in enabled)):
            return Given(None, "").fusion(layer, g, rows, total)
        if sum(enabled) != g or rows % g:
            raise ValueError(
                f"{self.config.path}: expected enable_lora with {g} projections for {layer}, "
                "as its factors "
                f"have; found {enabled}."
            )
        return equal_blocks(enabled, rows // g), None


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
        if r != self.r:
            raise _wrong_rank(self.path, layer, r, self.r)
        return self.alpha / r, None

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """Three equal blocks, q, k and v."""
        enabled = [name in self.matrices for name in ("q", "k", "v")]
        if sum(enabled) != g or rows % g:
            raise ValueError(
                f"{self.path}: expected attn_matrices with {g} of q, k and v for {layer}, as "
                "its factors have; "
                f"found {', '.join(self.matrices)}."
            )
        return equal_blocks(enabled, rows // g), None


@dataclass(frozen=True)
class Mlx:
    """MLX's adapter_config.json: ``lora_parameters`` with rank and scale."""

    path: Path
    r: int
    s: float
    note: str | None

    def scale(self, layer: str, r: int) -> tuple[float, str | None]:
        """The scale itself: MLX does not divide by r."""
        if r != self.r:
            raise _wrong_rank(self.path, layer, r, self.r)
        return self.s, self.note

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """MLX fuses nothing."""
        raise ValueError(
            f"{self.path}: expected one rank for both factors of {layer}; found {g} times B's in A."
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
        if r != self.r:
            raise _wrong_rank(self.path, layer, r, self.r)
        return self.alpha / r, None

    def fuses(self, layer: str) -> bool:
        """Whether the layer holds q, k and v."""
        return LITGPT_FUSED.search(layer) is not None

    def fusion(self, layer: str, g: int, rows: int, total: int | None) -> tuple[Fusion, str | None]:
        """Up to LitGPT 0.5 ``attn`` has them by groups of queries, but for a quirk: where all three
        are adapted B's rows are added as they stand. ``qkv`` has them one below the other."""
        sizes = [self.heads * self.head_size] + [self.groups * self.head_size] * 2
        if layer.endswith(".attn.attn") and not all(self.enabled):
            found = interleaved(self.heads, self.groups, self.head_size, self.enabled)
        else:
            found = blocks(sizes, self.enabled)
        if sum(self.enabled) != g or sum(found.sizes) != rows:
            raise ValueError(
                f"{self.path}: expected the configuration of {layer}, {g} projections with "
                f"{rows} rows; "
                f"found {sum(self.enabled)} with {sum(found.sizes)}."
            )
        return found, None


def adapterhub(path: Path, content: Mapping[str, Any]) -> AdapterHub:
    """Of adapter_config.json. ``ValueError`` where it describes no LoRA."""
    config = content.get("config")
    parts: list[Any] = [config]
    if isinstance(config, dict) and isinstance(
        config.get("configs"), list
    ):  # several methods together
        parts = config["configs"]
    found = [
        part for part in parts if isinstance(part, dict) and part.get("architecture") == "lora"
    ]
    if len(found) != 1:
        kinds = (
            ", ".join(
                str(part.get("architecture"))[:40] for part in parts if isinstance(part, dict)
            )
            or "none"
        )
        raise ValueError(
            f"{path}: not a low-rank update: expected one AdapterHub config of architecture "
            f"lora; found {kinds}."
        )
    (part,) = found
    for setting, plain in (
        ("composition_mode", "add"),
        ("use_gating", False),
        ("vera_d", None),
        ("vera_b", None),
    ):
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
    return AdapterHub(
        path,
        _rank(path, "r", part.get("r", 8)),
        _number(path, "alpha", part.get("alpha", 8)),
        tuple(names),
    )


def mlx(path: Path, content: Mapping[str, Any]) -> Mlx:
    """Of adapter_config.json."""
    given = content.get("lora_parameters")
    if not isinstance(given, dict):
        raise ValueError(
            f"{path}: expected lora_parameters with rank and scale; found {given!r:.40}."
        )
    r = _rank(path, "rank", given.get("rank"))
    if "scale" not in given and "alpha" not in given:
        raise ValueError(
            f"{path}: expected scale in lora_parameters; found {', '.join(map(str, given))[:80]}."
        )
    s = _number(path, "scale", given.get("scale", 1.0))
    if "alpha" not in given:
        return Mlx(path, r, s, None)
    alpha = _number(path, "alpha", given["alpha"])
    s *= alpha / r
    return Mlx(
        path,
        r,
        s,
        f"scale and alpha given: scale alpha / r = {s:g} taken, as MLX did while it had alpha",
    )


def litgpt(folder: Path) -> LitGpt | None:
    """Of the files beside ``lit_model.pth.lora``; None where they don't say enough."""
    content: dict[str, Any] = {}
    found = [folder / name for name in LITGPT if (folder / name).is_file()]
    for path in found:
        content |= read_json(path) if path.suffix == ".json" else _read_yaml(path)
    if "lora_r" not in content or "n_head" not in content:
        return None
    path = found[0]
    heads = _rank(path, "n_head", content["n_head"])
    groups = _rank(path, "n_query_groups", content.get("n_query_groups") or heads)
    size = content.get("head_size") or _rank(path, "n_embd", content.get("n_embd")) // heads
    if heads % groups:
        raise ValueError(
            f"{path}: expected n_head to be a multiple of n_query_groups; found {heads} and "
            f"{groups}."
        )
    query, key, value = (bool(content.get(f"lora_{name}")) for name in ("query", "key", "value"))
    return LitGpt(
        path,
        _rank(path, "lora_r", content["lora_r"]),
        _number(path, "lora_alpha", content.get("lora_alpha", 16)),
        (query, key, value),
        heads,
        groups,
        _rank(path, "head_size", size),
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


def _rank(path: Path, name: str, value: object) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(
            f"{path}: expected {name} to be a whole number from 1; found {value!r:.40}."
        )
    return value


def _number(path: Path, name: str, value: object) -> float:
    try:
        found = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{path}: expected {name} to be a number; found {value!r:.40}.")
    return found


def _wrong_rank(path: Path, layer: str, r: int, expected: int) -> ValueError:
    return ValueError(
        f"{path}: expected r = {r} for {layer}, as its factors have; found r = {expected}. "
        "Its scale would be wrong: set it to what was trained."
    )
