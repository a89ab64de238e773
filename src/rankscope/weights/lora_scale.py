"""A LoRA file with its settings, and the scale of each of its updates.

Letters: r rank, s scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rankscope.weights.base_model import BaseModel
from rankscope.weights.lora_config import LoraConfig, lora_config
from rankscope.weights.lora_names import LoraNames, Site
from rankscope.weights.lora_settings import Settings
from rankscope.weights.matrix import Skipped
from rankscope.weights.tensors import Tensors, finite, once

METADATA = (
    "lora_adapter_metadata"  # where diffusers keeps the LoraConfig of each of a pipeline's models
)


@dataclass(frozen=True)
class LoraFile:
    """A file of updates, sorted but not read; ``settings`` gives the scale if the file has none."""

    tensors: Tensors
    names: LoraNames
    settings: Settings
    base: BaseModel | None
    configs: Mapping[
        str, LoraConfig
    ]  # unet, transformer, ... -> what diffusers saved in the file's header

    def weight(self, layer: str) -> Tensor | Skipped | None:
        """W of a layer, or the reason why there is none; None without a base."""
        return None if self.base is None else self.base.weight(layer)


def site_scale(file: LoraFile, site: Site, r: int | None) -> tuple[float, str | None]:
    """s and a note: from the file itself, else from diffusers' settings in its header, else from
    the configuration beside it, else from the user or a guess.

    ``r`` None: for factors that alpha does not scale.
    """
    factor = _number(file.tensors, site.parts["scalar"]) if "scalar" in site.parts else 1.0
    scale, note = _scale(file, site, r)
    return scale * factor, note


def _scale(file: LoraFile, site: Site, r: int | None) -> tuple[float, str | None]:
    if "scale" in site.parts:
        return _number(file.tensors, site.parts["scale"]), None
    if r is None:
        return 1.0, None
    if "alpha" in site.parts:
        return _number(file.tensors, site.parts["alpha"]) / r, None
    part, _, rest = site.layer.partition(".")
    if (config := file.configs.get(part)) is not None:
        config.check(rest, r, has_magnitude="magnitude" in site.parts)
        return config.scale_of(rest, r), config.doubt_of(rest)
    scale, note = file.settings.scale(site.layer, r)
    if note is not None and (header := file.tensors.metadata.get("ss_network_alpha")) is not None:
        note += f"; its header has ss_network_alpha {header[:20]!r}, which those do not read"
    return scale, note


def _number(tensors: Tensors, name: str) -> float:
    if tensors.headers[name].dtype is None:
        raise ValueError(
            f"{tensors.where}: expected one number as {name}; found a dtype that torch lacks."
        )
    value = tensors.read(name).double()
    if value.numel() != 1 or not finite(value):
        raise ValueError(
            f"{tensors.where}: expected one number as {name}; found {value.flatten()[:4].tolist()}."
        )
    return float(value)


def header_configs(tensors: Tensors) -> dict[str, LoraConfig]:
    """unet, transformer, text_encoder, ... -> the LoraConfig that diffusers saved with it."""
    if METADATA not in tensors.metadata:
        return {}
    try:
        content = json.loads(tensors.metadata[METADATA], object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{tensors.where}: expected JSON as {METADATA}; found {error}.") from error
    parts: dict[str, dict[str, object]] = {}
    if not isinstance(content, dict):
        raise ValueError(
            f"{tensors.where}: expected a JSON object as {METADATA}; found "
            f"{type(content).__name__}."
        )
    for key, value in content.items():
        part, _, setting = key.partition(".")
        parts.setdefault(part, {})[setting] = value
    return {part: lora_config(Path(tensors.where), settings) for part, settings in parts.items()}
