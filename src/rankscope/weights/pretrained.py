"""The weights that an update was made for, found by the update's own layer names and read one at a time."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from rankscope.weights.checkpoints import open_checkpoint, read_json
from rankscope.weights.hub import Place, place
from rankscope.weights.matrix import Skipped
from rankscope.weights.tensors import READABLE, Header, Tensors

# Layers that Transformers builds as Conv1D, whose weight is stored (in, out).
CONV1D = {
    "gpt2": ("c_attn", "q_attn", "c_proj", "c_fc"),
    "openai-gpt": ("c_attn", "c_proj", "c_fc"),
    "imagegpt": ("c_attn", "q_attn", "c_proj", "c_fc"),
    "decision_transformer": ("c_attn", "q_attn", "c_proj", "c_fc"),
    "clvp": ("c_fc", "c_proj"),
}
PACKED = {"qweight": "GPTQ or AWQ", "weight_packed": "compressed-tensors", "weight.absmax": "bitsandbytes"}
EXPERTS = re.compile(r"(^|\.)experts(\.|$)")


@dataclass(frozen=True)
class Pretrained:
    """The base model's tensors. ``model_type`` is that of its config.json, None where there is none."""

    tensors: Tensors
    model_type: str | None = None
    endings: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "endings", _endings(self.tensors))

    def name_of(self, layer: str) -> str | None:
        """The tensor that holds the layer's weight: by its name, less or plus the model's own prefix.

        An adapter on ``transformer.h.0.attn.c_attn`` belongs to ``h.0.attn.c_attn.weight`` of a checkpoint
        that was saved without the head, and the other way round.
        """
        parts = layer.split(".")
        for dropped in range(min(2, len(parts) - 1) + 1):
            ending = ".".join(parts[dropped:])
            for name in (f"{ending}.weight", ending):
                if name in self.tensors:
                    return name
        return self.endings.get(f"{layer}.weight") or self.endings.get(layer)

    def counterpart(self, name: str) -> str | None:
        """The tensor that another checkpoint of the same model calls ``name``."""
        return name if name in self.tensors else self.name_of(name.removesuffix(".weight"))

    def weight(self, layer: str) -> Tensor | Skipped:
        """The layer's weight as it is stored, or why there is none."""
        name = self.name_of(layer)
        if name is None:
            return Skipped(layer, f"W and W + dW: {self._missing(layer)}")
        if (why := unreadable(name, self.tensors.headers[name])) is not None:
            return Skipped(layer, f"W and W + dW: {why}")
        return self.tensors.read(name)

    def is_conv1d(self, layer: str) -> bool | None:
        """Whether the layer stores (in, out); None where the model's type isn't known."""
        if self.model_type is None:
            return None
        return layer.rpartition(".")[2] in CONV1D.get(self.model_type, ())

    def _missing(self, layer: str) -> str:
        for ending, packing in PACKED.items():
            if f"{layer}.{ending}" in self.tensors:
                return f"the base's weight is packed ({packing}): dequantise it first"
        near = difflib.get_close_matches(f"{layer}.weight", list(self.tensors), n=1)
        return f"the base {self.tensors.where} has no weight of that name" + (
            f"; nearest: {near[0]}" if near else ""
        )


def open_pretrained(source: str | Path) -> Pretrained:
    """The base model from files: a checkpoint file, a folder or a hub id."""
    tensors = open_checkpoint(source)
    path = Path(source).expanduser()
    where = Place(str(source), path.parent) if path.is_file() else place(source)
    config = where.find("config.json")
    model_type = read_json(config).get("model_type") if config is not None else None
    return Pretrained(tensors, model_type if isinstance(model_type, str) else None)


def unreadable(name: str, header: Header) -> str | None:
    """Why a tensor can't be measured as one matrix; None where it can."""
    if header.dtype not in READABLE:
        kind = (
            str(header.dtype).removeprefix("torch.") if header.dtype else "of a dtype that torch doesn't know"
        )
        return f"{name} is {kind}: a buffer or a packed weight, not a weight matrix"
    if len(header.shape) < 2:
        return f"{name} is a vector or a scalar of shape {header.shape}"
    if 0 in header.shape:
        return f"{name} is empty: shape {header.shape}"
    if len(header.shape) == 3 and EXPERTS.search(name):
        return f"{name} stacks experts, shape {header.shape}: a stack has no stable rank"
    return None


def as_matrix(weight: Tensor) -> Tensor:
    """(out, in) as it is; a convolution (out, in, k, ...) as (out, in k ...)."""
    return weight.flatten(1)


def _endings(tensors: Tensors) -> dict[str, str]:
    """Names less their first one or two parts -> whole name, where only one tensor ends so."""
    shortened = [(".".join(name.split(".")[cut:]), name) for name in tensors for cut in (1, 2)]
    count = Counter(ending for ending, _ in shortened)
    return {ending: name for ending, name in shortened if ending and count[ending] == 1}
