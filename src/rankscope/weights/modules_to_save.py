"""Whole weights saved beside an adapter (``modules_to_save``, biases): changes of full rank outside
B A."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from rankscope.weights.base_model import BaseModel, matrices, unreadable
from rankscope.weights.difference import difference_matrices, resized_vocabulary
from rankscope.weights.lora_names import NO_FACTORS
from rankscope.weights.matrix import Layer, Reading, Skipped, skipped
from rankscope.weights.tensors import Tensors

NEEDS_BASE = "saved in full (modules_to_save), a change of full rank outside B A: it needs the base"


def saved_layers(
    tensors: Tensors, names: Mapping[str, str], base: BaseModel | None, *, whole: bool = False
) -> Iterator[Layer]:
    """Each saved weight against the base's own, or why not; ``names``: name in the base -> tensor.

    ``whole``: they are of a whole model's state, in which most weights are as they were.
    """
    for name, key in names.items():
        layer = name if (plain := name.removesuffix(".weight")) in names else plain
        if layer.endswith(".base_layer"):
            yield skipped(
                layer, "a copy of the base's weight, which PEFT saves beside adapted embeddings"
            )
        elif ".original_module" in name:
            yield skipped(layer, "the module's weight before it was trained in full")
        elif "trainable_tokens" in name:
            yield skipped(layer, "trained tokens: single rows of the embedding, outside B A")
        elif (found := NO_FACTORS.fullmatch(name)) is not None:
            yield skipped(found["layer"], f"LyCORIS ({found['part']}): not a low-rank update B A")
        elif (why := unreadable(name, tensors.headers[key])) is not None:
            yield skipped(
                layer, f"{'not adapted' if whole else 'saved in full, outside B A'}; {why}"
            )
        elif base is None:
            yield skipped(layer, "not adapted: the model's own weight" if whole else NEEDS_BASE)
        else:
            yield Layer(layer, partial(_against_base, layer, name, key, tensors, base, whole))


def _against_base(
    layer: str, name: str, key: str, tensors: Tensors, base: BaseModel, whole: bool
) -> Reading:
    tuned, weight = tensors.read(key), base.weight_of(name)
    if isinstance(weight, Skipped):
        yield Skipped(layer, f"saved in full, outside B A; no dW: {weight.plain}")
    elif weight.shape != tuned.shape and not resized_vocabulary(layer, weight.shape, tuned.shape):
        changed = f"from {tuple(weight.shape)} to {tuple(tuned.shape)}"
        yield Skipped(
            layer,
            f"saved in full, outside B A; its shape changed {changed}: there is no difference",
        )
    elif whole and _same(tuned, weight):
        yield Skipped(layer, "not adapted: the base's own weight")
    else:
        for (part, after), (_, before) in zip(
            matrices(layer, tuned), matrices(layer, weight), strict=True
        ):
            yield from difference_matrices(part, after, before)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other.to(one.dtype)))
