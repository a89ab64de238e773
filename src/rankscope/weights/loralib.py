"""Files of microsoft/LoRA's loralib: ``layer.lora_A`` (r, n), ``layer.lora_B`` (m, r), and no configuration.

The scale alpha / r is not in the file. The stable rank of s B A does not depend on it; that of W + s B A
does.
"""

from __future__ import annotations

import re

from torch import Tensor

from rankscope.weights.base_model import BaseModel
from rankscope.weights.difference import natural, not_chosen
from rankscope.weights.layer_update import LayerUpdate, update_matrices
from rankscope.weights.matrix import Reading, Skipped
from rankscope.weights.modules_to_save import saved_matrices
from rankscope.weights.tensors import READABLE, Tensors

SUFFIXES = (".lora_A", ".lora_B")
UNPLACED = "which of the layer's projections were adapted (enable_lora) is not in the file"


def is_loralib(tensors: Tensors) -> bool:
    """Whether the names are loralib's: ``.lora_A``, with no ``.weight`` after it."""
    return any(name.endswith(SUFFIXES) for name in tensors)


def loralib_matrices(
    tensors: Tensors, base: BaseModel | None, chosen: re.Pattern[str] | None, *, alpha: float | None
) -> Reading:
    """dW of each adapted layer; with a base W, dW and W + dW. Without ``alpha`` the scale is 1."""
    layers = dict.fromkeys(n.removesuffix(s) for s in SUFFIXES for n in tensors if n.endswith(s))
    for layer in sorted(layers, key=natural):
        if chosen is not None and not chosen.search(layer):
            yield not_chosen(layer, chosen)
        else:
            yield from _site_matrices(tensors, layer, base, alpha)
    others = {name: name for name in tensors if not name.endswith(SUFFIXES)}
    yield from saved_matrices(tensors, others, base, chosen)


def _site_matrices(tensors: Tensors, layer: str, base: BaseModel | None, alpha: float | None) -> Reading:
    for suffix in SUFFIXES:
        if f"{layer}{suffix}" not in tensors:
            raise ValueError(
                f"{tensors.where}: expected {layer}{suffix} beside the other factor; found none."
            )
    headers = [tensors.headers[f"{layer}{suffix}"] for suffix in SUFFIXES]
    a, b = (header.shape for header in headers)
    if len(a) != 2 or len(b) != 2 or any(header.dtype not in READABLE for header in headers):
        yield Skipped(layer, f"lora_A {a} and lora_B {b} are not two floating-point matrices")
        return
    if 0 in (*a, *b) or a[0] % b[1] or b[0] % (a[0] // b[1]):
        raise ValueError(
            f"{tensors.where}: expected B (m, r) and A (r, n) with one r for {layer}; found B {b} and A {a}."
        )
    B, A = tensors.read(f"{layer}.lora_B"), tensors.read(f"{layer}.lora_A")
    weight = base.weight(layer) if base is not None else None
    stored_in_out = bool(base is not None and base.is_conv1d(layer))
    notes = [] if base is None else [base.said_of(layer)]
    r = b[1]
    if a[0] > r:
        B, placed = fused(B, A, weight, stored_in_out)
        notes.append(placed)
        if weight is not None and placed.endswith(UNPLACED):
            weight = Skipped(layer, f"W and W + dW: {UNPLACED}")
    if alpha is None:
        notes.append("no alpha in a loralib file: scale 1 (alpha = r) assumed; give alpha=")
    if f"{layer}.weight" in tensors:
        notes.append(
            "the file holds this layer's own weight, too: saved after .eval(), it contains s B A already"
        )
    factors = LayerUpdate(
        layer,
        B=B,
        A=A,
        scale=1.0 if alpha is None else alpha / r,
        stored_in_out=stored_in_out,
        note="; ".join(filter(None, notes)) or None,
    )
    yield from update_matrices(factors, weight, hint="so type --base MODEL")


def fused(B: Tensor, A: Tensor, weight: Tensor | Skipped | None, stored_in_out: bool) -> tuple[Tensor, str]:
    """B of ``MergedLinear``, block by block, and what must be said: dW = [B_1 A_1; B_2 A_2; ...] with zeros where a
    projection isn't adapted.

    A (g r, n) and B (g o, r) hold g adapted projections of o rows each; as one product the factor is (m, g r). Which
    of the layer's projections they are (``enable_lora``) is not in the file: all where they fill the layer; of three
    the first and the last, as loralib's own GPT-2 has it. sr(dW) does not depend on it.
    """
    r = B.shape[1]
    g = A.shape[0] // r
    o = B.shape[0] // g
    total = g * o
    if isinstance(weight, Tensor) and weight.ndim == 2:
        total = weight.shape[1 if stored_in_out else 0]
    where = list(range(g)) if total == g * o else [0, 2] if (g, total) == (2, 3 * o) else None
    said = f"MergedLinear: {g} fused projections of rank {r}"
    if where is None:
        total, where, said = g * o, list(range(g)), f"{said}; {UNPLACED}"
    elif total > g * o:
        said = f"{said}, taken to be the first and the last of three (query and value)"
    blocks = B.new_zeros(total, g * r)
    for i, place in enumerate(where):
        blocks[place * o : (place + 1) * o, i * r : (i + 1) * r] = B[i * o : (i + 1) * o]
    return blocks, said
