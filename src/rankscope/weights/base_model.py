"""The base model's weights, found by the update's layer names and read one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.weights.checkpoints import open_checkpoint, open_file, read_json
from rankscope.weights.flat_names import flat_names, layer_of_flat
from rankscope.weights.hub import Place, place
from rankscope.weights.matrix import Skipped
from rankscope.weights.name_index import NameIndex, without_wrapping
from rankscope.weights.quantized import dequantised, packing
from rankscope.weights.tensors import READABLE, Tensors, renamed, unreadable

# Layers that Transformers builds as Conv1D, whose weight is stored (in, out).
CONV1D = {
    "gpt2": ("c_attn", "q_attn", "c_proj", "c_fc"),
    "openai-gpt": ("c_attn", "c_proj", "c_fc"),
    "imagegpt": ("c_attn", "q_attn", "c_proj", "c_fc"),
    "decision_transformer": ("c_attn", "q_attn", "c_proj", "c_fc"),
    "clvp": ("c_fc", "c_proj"),
}
# Models whose stacked experts are stored (E, in, out), with ``is_transposed`` set on the module.
TRANSPOSED_EXPERTS = ("gpt_oss",)
# Checkpoint names of the two halves of a fused projection, and of the fused one.
FUSED = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
# A checkpoint of a model that ties these holds only one of the two.
OUTPUT_EMBEDDINGS = ("lm_head", "embed_out", "lm_head.decoder", "predictions.decoder")
NESTED = ".base_layer"  # inserted where PEFT wraps part of a layer that it also wraps


@dataclass(frozen=True)
class BaseModel:
    """The base model's tensors. ``model_type`` is that of its config.json, None if there is
    none; ``quantization`` is MLX's entry in it."""

    tensors: Tensors
    model_type: str | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def names(self) -> NameIndex:
        """Finds its tensors by names that differ by a prefix."""
        return NameIndex(self.tensors)

    @cached_property
    def flat(self) -> dict[str, str]:
        """kohya's name of a layer -> the layer."""
        return flat_names(n.removesuffix(".weight") for n in self.tensors if n.endswith(".weight"))

    def name_of(self, layer: str) -> str | None:
        """The tensor with the layer's weight, found by name with or without the model's prefix.

        An adapter on ``transformer.h.0.attn.c_attn`` belongs to ``h.0.attn.c_attn.weight`` of a
        checkpoint that was saved without the head, and vice versa.
        """
        layer = layer.replace(NESTED, "")
        parts = layer.split(".")
        for dropped in range(min(2, len(parts) - 1) + 1):
            ending = ".".join(parts[dropped:])
            for name in (
                f"{ending}.weight",
                ending,
                f"{ending}.0.weight",
                f"{ending}.in_proj_weight",
            ):
                if name in self.tensors:
                    return name
        return (
            self.names.endings.get(f"{layer}.weight")
            or self.names.endings.get(layer)
            or self.names.unwrapped.get(without_wrapping(f"{layer}.weight"))
            or self.names.unwrapped.get(without_wrapping(layer))
            or self.tied_to(layer)
        )

    def tied_to(self, layer: str) -> str | None:
        """The input embeddings, for an output layer that a checkpoint leaves out because it is tied
        to them."""
        if not layer.endswith(OUTPUT_EMBEDDINGS) or f"{layer}.weight" in self.tensors:
            return None
        return self.names.input_embeddings

    def layer_of_flat(self, flat: str) -> str | None:
        """The layer that kohya calls ``lora_unet_down_blocks_0_...``; None if no layer, or more
        than one, has such a name."""
        return layer_of_flat(self.flat, flat)

    def counterpart(self, name: str) -> str | None:
        """The tensor that another checkpoint of the same model calls ``name``."""
        return name if name in self.tensors else self.name_of(name.removesuffix(".weight"))

    def weight_of(self, name: str) -> Tensor | Skipped:
        """The base's value of the tensor ``name`` of another checkpoint, or the reason why there is
        none."""
        other = self.counterpart(name)
        if other is None or other.endswith(".weight"):  # which may be packed
            return self.weight(self.tensors.layer_of(name))
        if (why := unreadable(other, self.tensors.headers[other])) is not None:
            return Skipped(name, f"W and W + dW: {why}")
        return self.tensors.read(other)

    def weight(self, layer: str) -> Tensor | Skipped:
        """The layer's weight as stored, dequantised if needed, or why there is none."""
        name, kind = self.name_of(layer), self.packed(layer)
        if kind is not None:
            own = layer if name is None else name.removesuffix(".weight")
            found = dequantised(self.tensors, own, kind, self.quantization)
            return Skipped(layer, f"W and W + dW: {found}") if isinstance(found, str) else found
        if name is None:
            return Skipped(layer, f"W and W + dW: {self._missing(layer)}")
        if (why := unreadable(name, self.tensors.headers[name])) is not None:
            return Skipped(layer, f"W and W + dW: {why}")
        return self.tensors.read(name)

    def packed(self, layer: str) -> str | None:
        """The quantisation format of the layer's weight; None if it is unquantised or absent."""
        name = self.name_of(layer)
        return packing(self.tensors, layer if name is None else name.removesuffix(".weight"))

    def said_of(self, layer: str) -> str | None:
        """A note on where W came from, for its readers."""
        if (tied := self.tied_to(layer)) is not None:
            return f"W is {tied}, which the layer is tied to: merging changes both"
        kind = self.packed(layer)
        return None if kind is None else f"W is dequantised from {kind}"

    def has_layer(self, layer: str) -> bool:
        """Whether that layer has a weight of its own, not only a bias or a norm."""
        name = self.name_of(layer)
        return name is not None and len(self.tensors.headers[name].shape) > 1

    def bias(self, layer: str) -> Tensor | None:
        """The layer's bias; None if it has none."""
        name = self.name_of(layer)
        bias = name.removesuffix("weight") + "bias" if name is not None else ""
        return self.tensors.read(bias) if bias in self.tensors else None

    def shape_of(self, layer: str) -> tuple[int, ...] | None:
        """The shape of the layer's weight; None if there is none."""
        name = self.name_of(layer)
        return None if name is None else self.tensors.headers[name].shape

    def experts(self, parameter: str, count: int) -> Callable[[int], Tensor] | Skipped:
        """Reads one expert of a stacked weight, even if experts are stored separately."""
        name = self.name_of(parameter.removesuffix(".weight"))
        if name is not None:
            header = self.tensors.headers[name]
            if count == 1 and len(header.shape) == 2:
                return lambda _: self.tensors.read(name)
            if header.dtype not in READABLE or len(header.shape) != 3 or header.shape[0] != count:
                return Skipped(
                    parameter, f"W and W + dW: {name} {header.shape} is no stack of {count} experts"
                )
            stack = self.tensors.read(name)
            return lambda e: stack[e]
        return self._single_experts(parameter, count)

    @property
    def transposes_experts(self) -> bool:
        """Whether stacked experts are stored (E, in, out)."""
        return self.model_type in TRANSPOSED_EXPERTS

    def _single_experts(self, parameter: str, count: int) -> Callable[[int], Tensor] | Skipped:
        """Transformers stacks what many checkpoints store separately: gate_proj and up_proj, or w1
        and w3."""
        module, _, own = parameter.rpartition(".")
        place = re.match(r".*?\.\d+\.", module)
        inside = place[0] if place else ""
        here = [
            experts
            for before, experts in self.names.experts.items()
            if before.startswith(inside) or f".{inside}" in before
        ]
        for halves in FUSED.get(own, ()):
            found = {
                (e, half): name
                for experts in here
                for (e, half), name in experts.items()
                if half in halves
            }
            wanted = [(e, half) for e in range(count) for half in halves]
            if all(key in found for key in wanted) and len(found) == len(wanted):
                return lambda e: torch.cat([self.tensors.read(found[e, half]) for half in halves])
        return Skipped(parameter, f"W and W + dW: {self._missing(parameter)}")

    def is_conv1d(self, layer: str) -> bool | None:
        """Whether the layer stores (in, out); None if the model's type is unknown."""
        if self.model_type is None:
            return None
        return layer.rpartition(".")[2] in CONV1D.get(self.model_type, ())

    def check_same_model(
        self, layers: Sequence[str], where: str, *, matched: bool | None = None
    ) -> None:
        """``ValueError`` if the base holds none of ``layers``, so is another model."""
        if matched is None:
            matched = any(self.name_of(layer) is not None for layer in layers)
            matched = matched or self.names.holds_any(layers)
        if layers and not matched:
            raise ValueError(
                f"{self.tensors.where}: expected the base of {where}, with layers such as "
                f"{_some(layers)}; found none of its {len(layers)}, but {_some([*self.tensors])}. "
                "It is another model; give the one that was adapted: --base MODEL"
            )

    def _missing(self, layer: str) -> str:
        parts = layer.split(".")
        endings = (".".join(parts[cut:]) for cut in range(len(parts)))
        tails = self.names.tails
        near = next((tails[ending] for ending in endings if ending in tails), None)
        return f"the base {self.tensors.where} has no weight of that name" + (
            f"; nearest: {near}" if near else ""
        )


def open_base_model(source: str | Path, *, revision: str | None = None) -> BaseModel:
    """The base model from files: a checkpoint file, a folder or a hub id."""
    path = Path(source).expanduser()
    if path.is_file():
        where, tensors = Place(str(source), path.parent), open_file(path)
    else:
        where = place(source, revision=revision)
        tensors = open_checkpoint(where)
    tensors = _without_adapters(tensors)
    config = where.find("config.json")
    content = read_json(config) if config is not None else {}
    model_type, packing = content.get("model_type"), content.get("quantization")
    return BaseModel(
        tensors,
        model_type if isinstance(model_type, str) else None,
        packing if isinstance(packing, dict) else {},
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(name if len(name) <= 100 else f"{name[:97]}..." for name in names[:3])


def _without_adapters(tensors: Tensors) -> Tensors:
    """A PeftModel's whole state under the base's names."""
    plain = {name.replace(f"{NESTED}.", "."): name for name in tensors}
    wrapped = len(plain) == len(tensors.headers) and any(f"{NESTED}." in name for name in tensors)
    return renamed(tensors, plain) if wrapped else tensors
