"""LoRA files of writers other than PEFT: loralib, kohya, ComfyUI, diffusers, LyCORIS, torchtune,
LitGPT, AdapterHub and MLX, with their own names for B, A and the scale.

Letters: m rows (out), n columns (in), r rank, g fused projections. A (r, n) and B (m, r); of a
convolution A (r, in, k, k) and B (out, r, 1, 1), or with a ``lora_mid`` M (r, r, k, k) between them
A (r, in, 1, 1): the kernel is then B M A. kohya writes a layer's name with underscores for dots; it
is matched against the base's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from rankscope.weights.base_model import BaseModel
from rankscope.weights.difference import saved_layers
from rankscope.weights.factor_forms import fused_factor, loha, lokr
from rankscope.weights.layer_update import LayerUpdate, update_matrices
from rankscope.weights.lora_names import LoraNames, Site
from rankscope.weights.lora_scale import LoraFile, header_configs, site_scale
from rankscope.weights.lora_settings import UNPLACED, LitGpt, Settings
from rankscope.weights.matrix import Layer, Reading, Skipped
from rankscope.weights.tensors import READABLE, Tensors, as_matrix

EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe|shared)")
NUMBERS = ("alpha", "scale", "scalar")  # of any dtype: many files hold alpha as a whole number
OWN_WEIGHT = (
    "the file also holds this layer's weight: saved after .eval(), it already contains s B A"
)


def lora_layers(
    tensors: Tensors, names: LoraNames, settings: Settings, base: BaseModel | None
) -> Iterator[Layer]:
    """dW of each adapted layer, with a base also W and W + dW; then everything else in the file."""
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
    matrices = [name for part, name in factors.items() if part not in NUMBERS]
    if any(headers[name].dtype not in READABLE for name in matrices):
        yield Skipped(own, "its factors are not stored as floating-point matrices")
    elif "diff" in factors:
        yield from _difference(file, factors["diff"], own)
    elif site.style == "mlx" and len(headers[factors["A"]].shape) == 3:
        yield from _experts(file, site, own)
    else:
        yield from _update(file, site, own, factors)


def _difference(file: LoraFile, name: str, own: str) -> Reading:
    """dW stored in full."""
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
    """s B A of one layer, DoRA's function of it, or a LyCORIS product."""
    tensors = file.tensors
    weight = file.weight(own)
    notes: list[str | None] = [] if file.base is None else [file.base.said_of(own)]
    B, A, r = _factors(tensors, site, own, weight)
    if (kernel := _loralib_kernel(site, B, A, weight)) is not None:
        (B, A, r), said = kernel
        notes.append(said)
    scale, note = site_scale(file, site, r)
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
    m, n = B.shape[0], (B if A is None else A).shape[1]
    magnitude, by_column = _magnitude(tensors, factors, (m, n), own)
    update = LayerUpdate(
        own,
        B=B,
        A=A,
        scale=scale,
        stored_in_out=_stored_in_out(file, site, own, (m, n), weight),
        magnitude=magnitude,
        by_column=by_column,
        note="; ".join(filter(None, (*notes, note))) or None,
    )
    yield from update_matrices(update, weight, hint="so type --base MODEL")


def _factors(
    tensors: Tensors, site: Site, layer: str, weight: Tensor | Skipped | None
) -> tuple[Tensor, Tensor | None, int | None]:
    """B (m, r) and A (r, n), or dW / s and None; and the rank that divides alpha, None if s is
    1."""
    parts = {p: tensors.read(name) for p, name in site.parts.items() if p not in NUMBERS}
    try:
        if "hada_w1_a" in parts:
            (B, A), r = loha(parts)
            return B, A, r
        if parts.keys() & {"lokr_w1", "lokr_w1_a"}:
            (B, A), rank = lokr(parts)
            return B, A, rank
    except (RuntimeError, ValueError, IndexError) as error:
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
            return A, B, B.shape[0]  # (vocabulary, r) and (r, dimension): dW in its stored layout
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


def _loralib_kernel(
    site: Site, B: Tensor, A: Tensor | None, weight: Tensor | Skipped | None
) -> tuple[tuple[Tensor, Tensor | None, int], str] | None:
    """loralib's ConvLoRA: B (out k, r k), A (r k, in k), and B A reshaped to (out, in, k, k)."""
    if site.style != "loralib" or A is None:
        return None
    if not isinstance(weight, Tensor) or weight.ndim != 4 or B.shape[0] == weight.shape[0]:
        guess = weight is None and "conv" in site.layer.lower()
        said = "taken as a matrix; loralib's own convolutions need their shape: --base MODEL"
        return ((B, A, B.shape[1]), said) if guess else None
    k = weight.shape[-1]
    if B.shape[0] * A.shape[1] != weight.numel() or B.shape[1] % k:
        return None
    dW = (B.double() @ A.double()).reshape(weight.shape).flatten(1)
    return (dW, None, B.shape[1] // k), "loralib's convolution: B A reshaped to the kernel"


def _stored_in_out(
    file: LoraFile, site: Site, own: str, shape: tuple[int, int], weight: Tensor | Skipped | None
) -> bool:
    """Whether the base stores (in, out): by shape, if square by layer type; loralib's embeddings by
    name."""
    m, n = shape
    if isinstance(weight, Tensor) and (weight.ndim != 2 or m != n):
        return tuple(weight.shape) == (n, m)
    if site.style == "loralib" and EMBEDDING.fullmatch(own):
        return True
    return bool(file.base is not None and file.base.is_conv1d(own))


def _placed(
    file: LoraFile, layer: str, B: Tensor, A: Tensor, weight: Tensor | Skipped | None
) -> tuple[Tensor, str | None]:
    """B with each projection's rows in their place in the layer."""
    if isinstance(file.settings, LitGpt) and not file.settings.fuses(layer):
        return B, None
    r = B.shape[1]
    g = A.shape[0] // r
    total = None
    if isinstance(weight, Tensor) and weight.ndim == 2:
        in_out = weight.shape[0] == A.shape[1] != weight.shape[1]
        in_out = in_out or bool(file.base is not None and file.base.is_conv1d(layer))
        total = weight.shape[1 if in_out else 0]
    fusion, doubt = file.settings.fusion(layer, g, B.shape[0], total)
    said = f"MergedLinear: {g} fused projections of rank {r}"
    if doubt is not None:
        said += f"; {doubt}" if doubt == UNPLACED else f", {doubt}"
    return fused_factor(B, fusion), said


def _magnitude(
    tensors: Tensors, factors: Mapping[str, str], shape: tuple[int, int], layer: str
) -> tuple[Tensor | None, bool]:
    """DoRA's magnitudes, and whether they belong to columns: LyCORIS's ``dora_scale`` has shape
    (out, 1, ...) or (1, in, ...)."""
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
    """MLX's stacked experts: A (E, r, n), B (E, m, r), one update each."""
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
