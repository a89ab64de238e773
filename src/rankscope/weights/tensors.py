"""Named tensors of a file or a model: names and shapes are known at once, values are read on
demand."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.weights.limits import NAME, TENSORS

AHEAD = 2**20  # bytes above which reading ahead pays off
PIECE = 2**20  # bytes asked of the system at once: of a larger request it reads only a part ahead
READABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What torch.compile, FSDP, activation checkpointing and Lightning insert into module names.
WRAPPED = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
PARALLEL = "module."  # and the prefix of DataParallel, DistributedDataParallel and DeepSpeed
# Stacks (E, m, n): of experts (JetMoe's and Granite's files call them input_linear and
# output_linear), and of Zamba's Mamba heads. Other parameters of three dimensions are one matrix:
# convolutions, and XLNet's (d, heads, width).
STACKED = re.compile(
    r"(^|\.)(experts|input_linear|output_linear)(\.|$)|\.(x_proj_weight|dt_proj_weight|A_log)$"
)


@dataclass(frozen=True)
class Header:
    """What is known of a tensor before it is read. ``dtype`` is None if torch has no such type."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Tensors:
    """The named tensors of one or many files. ``where`` names them in messages.

    ``metadata`` is the free text in a safetensors file's header.
    """

    where: str
    headers: Mapping[str, Header]
    readers: Mapping[str, Callable[[], Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, tuple[Path, int, int]] = field(
        default_factory=dict
    )  # file, first byte, bytes

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __contains__(self, name: object) -> bool:
        return name in self.headers

    def layer_of(self, name: str) -> str:
        """The layer's name: the tensor's without ".weight", or in full if another tensor has that
        name."""
        plain = name.removesuffix(".weight")
        return name if plain in self.headers else plain

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, in the dtype of the file."""
        return self.readers[name]()

    def prefetch(self, name: str) -> None:
        """Asks the system to read the tensor's bytes ahead while others are measured; allocates
        nothing."""
        if name not in self.places or not hasattr(os, "posix_fadvise"):
            return
        path, start, length = self.places[name]
        if length > AHEAD:
            with path.open("rb") as file:
                for first in range(start, start + length, PIECE):
                    size = min(PIECE, start + length - first)
                    os.posix_fadvise(file.fileno(), first, size, os.POSIX_FADV_WILLNEED)


def finite(tensor: Tensor) -> bool:
    """Whether all entries are finite. Their sum tells, in a tenth of the time or less; if it
    overflows, every entry is checked."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


# what torch.nn.utils' weight_norm, spectral_norm and parametrizations make a weight of
PARAMETRIZED = re.compile(r"(^|\.)(parametrizations\..*|weight_(g|v|orig))$")


def unreadable(name: str, header: Header) -> str | None:
    """Why a tensor cannot be measured as one matrix; None if it can."""
    if header.dtype not in READABLE:
        kind = (
            str(header.dtype).removeprefix("torch.")
            if header.dtype
            else "of a dtype that torch does not support"
        )
        return f"{name} is {kind}: a buffer or a packed weight, not a weight matrix"
    if 0 in header.shape:
        return f"{name} is empty: shape {header.shape}"
    if PARAMETRIZED.search(name):
        return (
            f"{name} is what a parametrization (weight or spectral normalisation) makes the weight "
            "of: remove_parametrizations() leaves that itself"
        )
    if len(header.shape) < 2:
        return f"{name} is a vector or a scalar of shape {header.shape}"
    return None


def as_matrix(weight: Tensor) -> Tensor:
    """(out, in) unchanged; a convolution (out, in, k, ...) as (out, in k ...)."""
    return weight.flatten(1)


def matrices(layer: str, weight: Tensor) -> list[tuple[str, Tensor]]:
    """The matrices of one stored weight: itself, or each one of a stack (E, m, n) as
    ``layer[e]``."""
    if weight.ndim == 3 and STACKED.search(layer):
        return [(f"{layer}[{e}]", weight[e]) for e in range(len(weight))]
    return [(layer, as_matrix(weight))]


def natural(name: str) -> list[str | int]:
    """A sort key that puts layer.2 before layer.10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def from_state_dict(where: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """A state dictionary with the interface of a file."""
    headers = {name: Header(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return Tensors(where, headers, {name: _constant(tensor) for name, tensor in tensors.items()})


def _constant(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def without_wrappers(tensors: Tensors) -> Tensors:
    """The same tensors under their names without wrappers.

    ``ValueError`` if two tensors then share a name.
    """
    plain = {name: WRAPPED.sub("", name) for name in tensors}
    while plain and all(name.startswith(PARALLEL) for name in plain.values()):
        plain = {name: short.removeprefix(PARALLEL) for name, short in plain.items()}
    if all(name == short for name, short in plain.items()):
        return tensors
    short, count = Counter(plain.values()).most_common(1)[0]
    if count > 1:
        twins = " and ".join(name for name in plain if plain[name] == short)
        raise ValueError(f"{tensors.where}: expected one tensor {short}; found {twins}.")
    return renamed(tensors, {short: name for name, short in plain.items()})


def renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """The tensors of ``names``: new name -> name in ``tensors``."""
    return replace(
        tensors,
        headers={new: tensors.headers[old] for new, old in names.items()},
        readers={new: tensors.readers[old] for new, old in names.items()},
        places={new: tensors.places[old] for new, old in names.items() if old in tensors.places},
    )


def check_names(where: object, names: Mapping[str, Any]) -> None:
    """``ValueError`` if there are more tensors, or longer names, than any model has."""
    if len(names) > TENSORS:
        raise ValueError(
            f"{where}: expected at most {TENSORS} tensors in a file; found {len(names)}."
        )
    if max(map(len, names), default=0) > NAME:
        name = max(names, key=len)
        raise ValueError(
            f"{where}: expected names of at most {NAME} characters; found one of {len(name)}, "
            f"{name[:40]!r}..."
        )


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are unique: readers disagree which of two equal keys counts."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(
            f"the name {Counter(name for name, _ in pairs).most_common(1)[0][0][:80]!r} twice"
        )
    return content


def one_line(error: Exception) -> str:
    """The start of an error's message, without line ends."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
