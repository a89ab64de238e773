"""LoRA files of every other writer than PEFT: loralib, kohya, ComfyUI, diffusers, LyCORIS,
torchtune, LitGPT, AdapterHub and MLX; B and A under other names, the scale beside them.

Letters: m rows (out), n columns (in), r rank, g fused projections. A (r, n) and B (m, r); of a
convolution A (r, in, k, k) and B (out, r, 1, 1), or with a ``lora_mid`` M (r, r, k, k) between them
A (r, in, 1, 1): the kernel is then B M A. kohya writes a layer's name with underscores for dots; it
is found again among the base's names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rankscope.weights.base_model import BaseModel
from rankscope.weights.difference import saved_layers
from rankscope.weights.factor_forms import fused_factor, loha, lokr
from rankscope.weights.layer_update import LayerUpdate, update_matrices
from rankscope.weights.lora_config import LoraConfig, lora_config
from rankscope.weights.lora_names import LoraNames, Site
from rankscope.weights.lora_settings import UNPLACED, LitGpt, Settings
from rankscope.weights.matrix import Layer, Reading, Skipped
from rankscope.weights.tensors import READABLE, Tensors, as_matrix, finite, once

METADATA = (
    "lora_adapter_metadata"  # where diffusers keeps the LoraConfig of each of a pipeline's models
)
EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe|shared)")
OWN_WEIGHT = (
    "the file holds this layer's own weight, too: saved after .eval(), it contains s B A already"
)


@dataclass(frozen=True)
class LoraFile:
    """A file of updates, sorted but not read; ``settings`` gives the scale where the file has
    none."""

    tensors: Tensors
    names: LoraNames
    settings: Settings
    base: BaseModel | None
    configs: Mapping[
        str, LoraConfig
    ]  # unet, transformer, ... -> what diffusers saved in the file's header

    def weight(self, layer: str) -> Tensor | Skipped | None:
        """W of a layer, or why there is none; None without a base."""
        return None if self.base is None else self.base.weight(layer)


def lora_layers(
    tensors: Tensors, names: LoraNames, settings: Settings, base: BaseModel | None
) -> Iterator[Layer]:
    """dW of each adapted layer; with a base W, dW and W + dW; then what else the file holds."""
    file = LoraFile(tensors, names, settings, base, header_configs(tensors))
    own = {site.layer: _own_name(site.layer, base) for site in names.sites}
    if base is not None:
        base.check_same_model(list(own.values()), tensors.where)
    for site in names.sites:
        yield Layer(own[site.layer], partial(_site_matrices, file, site, own[site.layer]))
    yield from saved_layers(tensors, {name: name for name in names.others}, base)


def _own_name(layer: str, base: BaseModel | None) -> str:
    return layer if base is None else base.layer_of_flat(layer) or layer


def _site_matrices(file: LoraFile, site: Site, own: str) -> Reading:
    headers = file.tensors.headers
    if "diff_b" in site.parts:
        yield Skipped(f"{own}.bias", "the change of a bias (.diff_b): a vector outside B A")
    factors = {part: name for part, name in site.parts.items() if part != "diff_b"}
    if not factors:
        return
    if any(headers[name].dtype not in READABLE for name in factors.values()):
        yield Skipped(own, "its factors are not stored as floating-point matrices")
    elif "diff" in factors:
        yield from _difference(file, factors["diff"], own)
    elif site.style == "mlx" and len(headers[factors["A"]].shape) == 3:
        yield from _experts(file, site, own)
    else:
        yield from _update(file, site, own, factors)


def _difference(file: LoraFile, name: str, own: str) -> Reading:
    """dW stored whole."""
    shape = file.tensors.headers[name].shape
    if len(shape) < 2 or 0 in shape:
        yield Skipped(own, f"the change of a norm or another vector (.diff) of shape {shape}")
        return
    dW = as_matrix(file.tensors.read(name))
    note = "dW is stored whole (.diff)"
    update = LayerUpdate(
        own, B=dW, A=None, scale=None, stored_in_out=False, note=note, read_from="difference"
    )
    yield from update_matrices(update, file.weight(own), hint="")


def _update(file: LoraFile, site: Site, own: str, factors: Mapping[str, str]) -> Reading:
    """s B A of one layer, DoRA's function of it, or one of LyCORIS's products."""
    tensors = file.tensors
    weight = file.weight(own)
    notes: list[str | None] = [] if file.base is None else [file.base.said_of(own)]
    B, A, r = _factors(tensors, site, own, weight)
    scale, note = (1.0, None) if r is None else site_scale(file, site, r)
    if "B" in factors and (
        (A is not None and A.shape[0] != B.shape[1]) or isinstance(file.settings, LitGpt)
    ):
        assert A is not None
        B, note_of_place = _placed(file, own, B, A, weight)
        notes.append(note_of_place)
        if isinstance(weight, Tensor) and note_of_place and note_of_place.endswith(UNPLACED):
            weight = Skipped(own, f"W and W + dW: {UNPLACED}")
    if site.style == "loralib" and f"{site.layer}.weight" in tensors:
        notes.append(OWN_WEIGHT)
    magnitude, by_column = _magnitude(
        tensors, factors, (B.shape[0], (B if A is None else A).shape[1]), own
    )
    update = LayerUpdate(
        own,
        B=B,
        A=A,
        scale=scale,
        stored_in_out=bool(file.base is not None and file.base.is_conv1d(own)),
        magnitude=magnitude,
        by_column=by_column,
        note="; ".join(filter(None, (*notes, note))) or None,
    )
    yield from update_matrices(update, weight, hint="so type --base MODEL")


def _factors(
    tensors: Tensors, site: Site, layer: str, weight: Tensor | Skipped | None
) -> tuple[Tensor, Tensor | None, int | None]:
    """B (m, r) and A (r, n), or dW / s and None; and the rank that alpha is divided by, None where
    s is 1."""
    parts = {part: tensors.read(name) for part, name in site.parts.items()}
    try:
        if "hada_w1_a" in parts:
            (B, A), r = loha(parts)
            return B, A, r
        if parts.keys() & {"lokr_w1", "lokr_w1_a"}:
            (B, A), rank = lokr(parts)
            return B, A, rank
    except RuntimeError as error:
        shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items())
        raise ValueError(
            f"{tensors.where}: expected factors that fit for {layer}; found {shapes}."
        ) from error
    B, A = parts["B"], parts["A"]
    if site.style == "mlx" and A.ndim == B.ndim == 2 and A.shape[1] == B.shape[0]:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
        as_rows, as_columns = (A.shape[0], B.shape[1]), (B.shape[1], A.shape[0])
        embedding = (
            shape == as_rows if shape in (as_rows, as_columns) and as_rows != as_columns else None
        )
        if embedding or (embedding is None and EMBEDDING.fullmatch(layer)):
            return A, B, B.shape[0]  # (vocabulary, r) and (r, dimension): dW as it stands
        B, A = B.mT, A.mT
    M = parts.get("lora_mid")
    fits = (
        B.ndim >= 2 and A.ndim >= 2 and 0 not in (*B.shape, *A.shape) and B.shape[2:].numel() == 1
    )
    if fits and M is not None:
        fits = M.ndim > 2 and M.shape[:2] == (B.shape[1], A.shape[0]) and A.shape[2:].numel() == 1
        if fits:
            A = torch.einsum(
                "pqk,qi->pik", M.double().flatten(2), A.double().flatten(1)
            )  # (r, in, k k)
    fused = site.style == "loralib" and A.ndim == B.ndim == 2
    if not fits or (A.shape[0] != B.shape[1] and not (fused and A.shape[0] % B.shape[1] == 0)):
        names = {"kohya": ("lora_up", "lora_down")}.get(site.style, ("B", "A"))
        shapes = ", ".join(
            f"{part} {tuple(tensor.shape)}"
            for part, tensor in parts.items()
            if part in ("A", "B", "lora_mid")
        )
        raise ValueError(
            f"{tensors.where}: expected {names[0]} (m, r) and {names[1]} (r, n) with one r for "
            f"{layer}; found {shapes}."
        )
    return B.flatten(1), A.flatten(1), B.shape[1]


def site_scale(file: LoraFile, site: Site, r: int) -> tuple[float, str | None]:
    """s, and what must be said of it: by the file itself, else by what diffusers put into its
    header, else by the configuration beside it, else by the user or a guess."""
    tensors = file.tensors
    if "alpha" in site.parts:
        alpha = tensors.read(site.parts["alpha"])
        if alpha.numel() != 1 or not finite(alpha):
            raise ValueError(
                f"{tensors.where}: expected one number as {site.parts['alpha']}; found "
                f"{alpha.flatten()[:4].tolist()}."
            )
        return float(alpha) / r, None
    part, _, rest = site.layer.partition(".")
    if (config := file.configs.get(part)) is not None:
        return config.scale_of(rest, r), config.doubt_of(rest)
    return file.settings.scale(site.layer, r)


def _placed(
    file: LoraFile, layer: str, B: Tensor, A: Tensor, weight: Tensor | Skipped | None
) -> tuple[Tensor, str | None]:
    """B with each projection's rows where the layer has them."""
    if isinstance(file.settings, LitGpt) and not file.settings.fuses(layer):
        return B, None
    r = B.shape[1]
    g = A.shape[0] // r
    total = None
    if isinstance(weight, Tensor) and weight.ndim == 2:
        in_out = file.base is not None and file.base.is_conv1d(layer)
        total = weight.shape[1 if in_out else 0]
    fusion, doubt = file.settings.fusion(layer, g, B.shape[0], total)
    said = f"MergedLinear: {g} fused projections of rank {r}"
    if doubt is not None:
        said += f"; {doubt}" if doubt == UNPLACED else f", {doubt}"
    return fused_factor(B, fusion), said


def _magnitude(
    tensors: Tensors, factors: Mapping[str, str], shape: tuple[int, int], layer: str
) -> tuple[Tensor | None, bool]:
    """DoRA's magnitudes, and whether they belong to columns. LyCORIS's ``dora_scale`` tells by its
    shape: (out, 1, ...) or (1, in, ...)."""
    if "magnitude" in factors:
        return tensors.read(factors["magnitude"]).flatten(), False
    if "dora_scale" not in factors:
        return None, False
    scale = tensors.read(factors["dora_scale"])
    by_column = scale.ndim > 1 and scale.shape[0] == 1 and scale.numel() > 1
    rows = not by_column and scale.numel() == shape[0]
    if not (rows or (by_column and shape[1] % scale.numel() == 0)):
        raise ValueError(
            f"{tensors.where}: expected dora_scale (out, 1) or (1, in) for {layer} {shape}; "
            f"found {tuple(scale.shape)}."
        )
    return scale.flatten(), by_column


def _experts(file: LoraFile, site: Site, own: str) -> Reading:
    """MLX on stacked experts: A (E, r, n), B (E, m, r), one update for each."""
    A, B = (file.tensors.read(site.parts[part]) for part in "AB")
    if B.ndim != 3 or A.shape[0] != B.shape[0] or A.shape[1] != B.shape[2]:
        raise ValueError(
            f"{file.tensors.where}: expected lora_a (E, r, n) and lora_b (E, m, r) for {own}; "
            f"found {tuple(A.shape)} and {tuple(B.shape)}."
        )
    scale, note = site_scale(file, site, A.shape[1])
    stack = file.weight(own)
    for e in range(len(A)):
        name = f"{own}[{e}]"
        weight = Skipped(name, stack.why) if isinstance(stack, Skipped) else stack
        if isinstance(weight, Tensor):
            right = weight.ndim == 3 and len(weight) == len(A)
            why = f"W and W + dW: {own} {tuple(weight.shape)} is no stack of {len(A)} experts"
            weight = weight[e] if right else Skipped(name, why)
        update = LayerUpdate(name, B=B[e], A=A[e], scale=scale, stored_in_out=False, note=note)
        yield from update_matrices(update, weight, hint="")


def header_configs(tensors: Tensors) -> dict[str, LoraConfig]:
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
