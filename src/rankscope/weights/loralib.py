"""Files of microsoft/LoRA's loralib: ``layer.lora_A`` (r, n), ``layer.lora_B`` (m, r), and no configuration.

The scale alpha / r is not in the file. The stable rank of s B A does not depend on it; that of W + s B A
does.
"""

from __future__ import annotations

import re

from rankscope.weights.difference import natural, not_chosen
from rankscope.weights.factors import Factors, factor_matrices
from rankscope.weights.matrix import Reading, Skipped
from rankscope.weights.pretrained import Pretrained
from rankscope.weights.saved import saved_matrices
from rankscope.weights.tensors import READABLE, Tensors

SUFFIXES = (".lora_A", ".lora_B")


def is_loralib(tensors: Tensors) -> bool:
    """Whether the names are loralib's: ``.lora_A``, with no ``.weight`` after it."""
    return any(name.endswith(SUFFIXES) for name in tensors)


def loralib_matrices(
    tensors: Tensors, base: Pretrained | None, chosen: re.Pattern[str] | None, *, alpha: float | None
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


def _site_matrices(tensors: Tensors, layer: str, base: Pretrained | None, alpha: float | None) -> Reading:
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
    if b[1] != a[0]:
        if a[0] % b[1] == 0:
            yield Skipped(layer, f"loralib's MergedLinear: {a[0] // b[1]} fused projections, not one B A")
            return
        raise ValueError(
            f"{tensors.where}: expected B (m, r) and A (r, n) with one r for {layer}; found B {b} and A {a}."
        )
    r = a[0]
    weight = base.weight(layer) if base is not None else None
    notes = ["no alpha in a loralib file: scale 1 (alpha = r) assumed; give alpha="] if alpha is None else []
    if f"{layer}.weight" in tensors:
        notes.append(
            "the file holds this layer's own weight, too: saved after .eval(), it contains s B A already"
        )
    factors = Factors(
        layer,
        B=tensors.read(f"{layer}.lora_B"),
        A=tensors.read(f"{layer}.lora_A"),
        scale=1.0 if alpha is None else alpha / r,
        stored_in_out=bool(base is not None and base.is_conv1d(layer)),
        note="; ".join(notes) or None,
    )
    yield from factor_matrices(factors, weight, hint="so type --base MODEL")
