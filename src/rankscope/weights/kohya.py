"""LoRA files of kohya's sd-scripts, ComfyUI and diffusers: B and A under other names, alpha beside them.

Letters: m rows (out), n columns (in), r rank. ``lora_down`` is A (r, n), ``lora_up`` is B (m, r); of a
convolution A (r, in, k, k) and B (out, r, 1, 1), or with a ``lora_mid`` M (r, r, k, k) between them A (r, in, 1, 1): the
kernel is then B M A. ``.alpha`` is one number; where it is missing alpha = r, as all three take it.
kohya writes a layer's name with underscores for dots; it is found again among the base's names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankscope.weights.base_model import BaseModel
from rankscope.weights.difference import natural, not_chosen
from rankscope.weights.layer_update import LayerUpdate, update_matrices
from rankscope.weights.lora_config import LoraConfig, lora_config
from rankscope.weights.matrix import Reading, Skipped
from rankscope.weights.modules_to_save import saved_matrices
from rankscope.weights.tensors import READABLE, Tensors, finite, once

# A layer, and a part of its update. diffusers had several ways over the years: to_q.lora_A.weight, to_q.lora.down.weight,
# to_q.lora_linear_layer.down.weight and processor.to_q_lora.down.weight.
PART = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.(?P<factor>lora_up|lora_down|lora_mid|lora_A|lora_B)(?:\.default)?\.weight|"
    r"[._]lora(?:_linear_layer)?\.(?P<way>up|down)\.weight|"
    r"\.(?P<beside>alpha|dora_scale|lora_magnitude_vector)(?:\.default)?(?:\.weight)?)"
)
LETTER = {"lora_up": "B", "up": "B", "lora_B": "B", "lora_down": "A", "down": "A", "lora_A": "A"}
LYCORIS = re.compile(r"(?P<layer>.+?)\.(?P<part>hada_|lokr_|oft_blocks|oft_diag|on_input).*")
METADATA = "lora_adapter_metadata"  # where diffusers keeps the LoraConfig of each of a pipeline's models
PEFT_PREFIX = "base_model."


@dataclass(frozen=True)
class Sorted:
    """layer -> part (B, A, lora_mid, alpha, ...) -> tensor; and the tensors that belong to no layer's update."""

    sites: dict[str, dict[str, str]]
    others: list[str]


def is_kohya(tensors: Tensors) -> bool:
    """Whether the names are of one of these styles; PEFT's own, which need a configuration, are not."""
    return any(
        not name.startswith(PEFT_PREFIX)
        and (((found := PART.fullmatch(name)) is not None and not found["beside"]) or LYCORIS.fullmatch(name))
        for name in tensors
    )


def kohya_matrices(tensors: Tensors, base: BaseModel | None, chosen: re.Pattern[str] | None) -> Reading:
    """dW of each adapted layer; with a base W, dW and W + dW."""
    parts, configs = sort_parts(tensors), _configs(tensors)
    if not parts.sites:
        raise ValueError(
            f"{tensors.where}: not a low-rank update: LyCORIS ({parts.others[0]}), no B A in it."
        )
    for layer, site in parts.sites.items():
        own = layer if base is None else base.layer_of_flat(layer) or layer
        if chosen is not None and not chosen.search(own):
            yield not_chosen(own, chosen)
        else:
            yield from _site_matrices(tensors, layer, own, site, base, configs)
    others: dict[str, str] = {}
    lycoris: dict[str, str] = {}
    for name in parts.others:
        found = LYCORIS.fullmatch(name)
        if found is None:
            others[name] = name
        else:
            lycoris.setdefault(found["layer"], found["part"].rstrip("_."))
    for layer, part in lycoris.items():
        yield Skipped(layer, f"LyCORIS ({part}): not a low-rank update B A")
    yield from saved_matrices(tensors, others, base, chosen)


def sort_parts(tensors: Tensors) -> Sorted:
    """Groups the tensors by layer. ``ValueError`` where a factor is there twice or without the other."""
    sites: dict[str, dict[str, str]] = {}
    others: list[str] = []
    for name in sorted(tensors, key=natural):
        found = PART.fullmatch(name)
        if found is None:
            others.append(name)
            continue
        part = found["factor"] or found["way"] or found["beside"]
        part = LETTER.get(part, part)
        layer = found["layer"].replace(".processor.", ".")
        site = sites.setdefault(layer, {})
        if part in site:
            raise ValueError(
                f"{tensors.where}: expected one {part} for {layer}; found {site[part]} and {name}."
            )
        site[part] = name
    for layer, site in list(sites.items()):
        if "A" not in site and "B" not in site:  # an alpha of LyCORIS, or a parameter that bears the name
            others += sites.pop(layer).values()
        elif len({"A", "B"} & set(site)) < 2:
            there, missing = ("lora_down", "lora_up") if "A" in site else ("lora_up", "lora_down")
            raise ValueError(f"{tensors.where}: expected {missing} beside {there} for {layer}; found none.")
    return Sorted(sites, others)


def _site_matrices(
    tensors: Tensors,
    layer: str,
    own: str,
    site: Mapping[str, str],
    base: BaseModel | None,
    configs: Mapping[str, LoraConfig],
) -> Reading:
    if "dora_scale" in site:
        why = "weight-decomposed (dora_scale): W' - W is not s B A, and the file doesn't tell its norm's axis"
        yield Skipped(own, why)
        return
    if any(tensors.headers[name].dtype not in READABLE for name in site.values()):
        yield Skipped(own, "its factors are not stored as floating-point matrices")
        return
    B, A = _factors(tensors, layer, site)
    r = A.shape[0]
    scale, note = _scale(tensors, layer, site, r, configs)
    magnitude = site.get("lora_magnitude_vector")
    factors = LayerUpdate(
        own,
        B=B,
        A=A,
        scale=scale,
        stored_in_out=bool(base is not None and base.is_conv1d(own)),
        magnitude=tensors.read(magnitude).flatten() if magnitude else None,
        note=note,
    )
    yield from update_matrices(
        factors, None if base is None else base.weight(own), hint="so type --base MODEL"
    )


def _factors(tensors: Tensors, layer: str, site: Mapping[str, str]) -> tuple[Tensor, Tensor]:
    """B (m, r) and A (r, n)."""
    B, A = tensors.read(site["B"]), tensors.read(site["A"])
    fits = B.ndim >= 2 and A.ndim >= 2 and B.shape[1] == A.shape[0] and B.shape[2:].numel() == 1
    if "lora_mid" in site:
        M = tensors.read(site["lora_mid"])
        fits = (
            fits
            and M.ndim > 2
            and M.shape[0] == B.shape[1]
            and M.shape[1] == A.shape[0]
            and A.shape[2:].numel() == 1
        )
        if fits:
            A = torch.einsum("pqk,qi->pik", M.double().flatten(2), A.double().flatten(1))  # (r, in, k k)
    if not fits or 0 in (*B.shape, *A.shape):
        shapes = ", ".join(
            f"{part} {tensors.headers[name].shape}" for part, name in site.items() if part != "alpha"
        )
        raise ValueError(
            f"{tensors.where}: expected lora_up (m, r) and lora_down (r, n) with one r for {layer}; found {shapes}."
        )
    return B.flatten(1), A.flatten(1)


def _scale(
    tensors: Tensors, layer: str, site: Mapping[str, str], r: int, configs: Mapping[str, LoraConfig]
) -> tuple[float, str | None]:
    """s, and what must be said of it."""
    if "alpha" in site:
        alpha = tensors.read(site["alpha"])
        if alpha.numel() != 1 or not finite(alpha):
            raise ValueError(
                f"{tensors.where}: expected one number as {site['alpha']}; found {alpha.tolist()}."
            )
        return float(alpha) / r, None
    part, _, rest = layer.partition(".")
    if (config := configs.get(part)) is not None:
        return config.scale_of(rest, r), config.doubt_of(rest)
    return 1.0, "no alpha in the file: alpha = r taken, as kohya, ComfyUI and diffusers do"


def _configs(tensors: Tensors) -> dict[str, LoraConfig]:
    """unet, transformer, text_encoder, ... -> the LoraConfig that diffusers saved with it."""
    if METADATA not in tensors.metadata:
        return {}
    try:
        content = json.loads(tensors.metadata[METADATA], object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{tensors.where}: expected JSON as {METADATA}; found {error}.") from error
    parts: dict[str, dict[str, object]] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        part, _, setting = key.partition(".")
        parts.setdefault(part, {})[setting] = value
    return {part: lora_config(Path(tensors.where), settings) for part, settings in parts.items()}
