"""Whole weights saved beside an adapter (``modules_to_save``, biases): changes of full rank outside B A."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from rankscope.weights.base_model import BaseModel, matrices, unreadable
from rankscope.weights.difference import difference_matrices, not_chosen, resized_vocabulary
from rankscope.weights.matrix import Reading, Skipped
from rankscope.weights.tensors import Tensors


def saved_matrices(
    tensors: Tensors, names: Mapping[str, str], base: BaseModel | None, chosen: re.Pattern[str] | None
) -> Reading:
    """Each saved weight against the base's own, or why not; ``names``: name in the base -> tensor."""
    for name, key in names.items():
        layer = name if (plain := name.removesuffix(".weight")) in names else plain
        if chosen is not None and not chosen.search(layer):
            yield not_chosen(layer, chosen)
        elif layer.endswith(".base_layer"):
            yield Skipped(layer, "a copy of the base's weight, which PEFT saves beside adapted embeddings")
        elif "trainable_tokens" in name:
            yield Skipped(layer, "trained tokens: single rows of the embedding, outside B A")
        elif (why := unreadable(name, tensors.headers[key])) is not None:
            yield Skipped(layer, f"saved in full, outside B A; {why}")
        elif base is None:
            yield Skipped(
                layer, "saved in full (modules_to_save), a change of full rank outside B A: it needs the base"
            )
        else:
            yield from _against_base(layer, name, tensors.read(key), base)


def _against_base(layer: str, name: str, tuned: Tensor, base: BaseModel) -> Reading:
    weight = base.weight_of(name)
    if isinstance(weight, Skipped):
        yield Skipped(layer, f"saved in full, outside B A; no dW: {weight.plain}")
    elif weight.shape != tuned.shape and not resized_vocabulary(layer, weight.shape, tuned.shape):
        changed = f"from {tuple(weight.shape)} to {tuple(tuned.shape)}"
        yield Skipped(
            layer, f"saved in full, outside B A; its shape changed {changed}: there is no difference"
        )
    else:
        for (part, after), (_, before) in zip(matrices(layer, tuned), matrices(layer, weight), strict=True):
            yield from difference_matrices(part, after, before)
