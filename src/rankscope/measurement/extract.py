"""A full fine-tune as a LoRA adapter, with the error proved: each W' - W is cut to its leading
singular directions. docs/math.md, section 9.

Letters: m rows, n columns, k kept rank, p = min(m, n).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.linalg import Dense, LowRank, frobenius_norm, spectral_norm
from rankscope.linalg.leading import all_directions, leading_directions, projected
from rankscope.linalg.rounding import gamma
from rankscope.measurement.keep import Goal, first_ranks, next_rank, shared_ranks
from rankscope.measurement.resized import Cut, Factors, Lost, Resized, new_folder, write_resized
from rankscope.weights.base_model import BaseModel, open_base_model
from rankscope.weights.difference import difference_matrices
from rankscope.weights.lora_names import is_adapter
from rankscope.weights.lora_pairs import LoraPairs, Pair
from rankscope.weights.matrix import Skipped
from rankscope.weights.source import ADAPTERS, find
from rankscope.weights.tensors import (
    READABLE,
    Header,
    Tensors,
    finite,
    natural,
    without_wrappers,
)

# Layers that PEFT does not adapt as linear ones
EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe|shared|relative_attention_bias)")
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Layer:
    """A weight that changed: its tensor's name, and whether the base stores it (in, out)."""

    name: str
    in_out: bool
    shape: tuple[int, int]  # of B A: (out, in)

    @property
    def layer(self) -> str:
        """The module's name."""
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Change:
    """A fine-tune beside its base, sorted: ``layers`` to be cut; ``new``, tensors that the base
    has not, which are kept whole; ``lost``, what changed and is neither."""

    tuned: Tensors
    base: BaseModel
    layers: list[Layer]
    new: list[str]
    lost: list[Lost]

    def pair(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """W' and W as (out, in)."""
        weight, tuned = self.base.weight_of(layer.name), self.tuned.read(layer.name)
        assert isinstance(weight, Tensor)
        return (tuned.mT, weight.mT) if layer.in_out else (tuned, weight)


def extract(
    source: str | Path,
    *,
    base: str | Path,
    to: str | Path,
    energy: float | None = None,
    rank: int | None = None,
    error: float | None = None,
    budget: int | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
) -> Resized:
    """Writes the change from ``base`` to the full fine-tune ``source`` as a LoRA adapter of PEFT
    into the new folder ``to``, with ``resize.json``.

    Args:
        source: a checkpoint: a path or a hub id.
        base: the model that it was tuned from, the same.
        to: the folder to make; never one that exists.
        energy, rank, error, budget: one of them; see ``Goal``.
        revision: branch, tag or commit of ``source`` on the hub.
        base_revision: the same of ``base``.

    Factors are float32. Weights of linear layers that changed are cut; tensors that the base has
    not (a head) are kept whole as ``modules_to_save``; whatever else changed (embeddings, biases,
    norms, convolutions, experts) is not in the adapter, and stands in ``lost``. Raises
    ``ValueError``, one line, before anything is written, where one of both is missing or malformed,
    they are of two models, not finite, or equal.
    """
    goal = Goal(energy, rank, error, budget)
    place = new_folder(to, source)
    found = find(source, revision=revision)
    tuned = without_wrappers(found.tensors)
    if is_adapter(tuned):
        raise ValueError(
            f"{source}: expected a full checkpoint; found an adapter. Type: rankscope resize"
        )
    change = _sorted(tuned, open_base_model(base, revision=base_revision), str(source))
    spectra = None
    if goal.budget is not None:
        spectra = {one.layer: all_directions(*change.pair(one))[1] for one in change.layers}
    pairs = _empty_adapter(change, str(source), str(base))
    ranks, threshold = shared_ranks(pairs, goal, spectra or {})
    cuts, factors = [], {}
    for one in change.layers:
        cut, factors[one.layer] = _cut(change, one, goal, ranks.get(one.layer))
        cuts.append(cut)
    sizes = (header for name, header in tuned.headers.items() if header.dtype is not None)
    before = sum(torch.Size(h.shape).numel() * h.dtype.itemsize for h in sizes if h.dtype)
    result = Resized(
        str(source), str(to), "peft", goal.given, before, pairs.size(_ranks(factors)),
        tuple(cuts), tuple(change.new), threshold, _absent(change), tuple(change.lost),
    )  # fmt: skip
    write_resized(place, pairs, factors, result)
    return result


def _absent(change: Change) -> tuple[str, ...]:
    """Says which tensors of the base the fine-tune does not have."""
    met = {change.base.counterpart(name) for name in change.tuned}
    absent = [name for name in change.base.tensors if name not in met]
    return (f"only in the base: {len(absent)} tensors, such as {absent[0]}",) if absent else ()


def _ranks(factors: dict[str, Factors]) -> dict[str, int]:
    return {layer: A.shape[0] for layer, (_, A) in factors.items()}


def _sorted(tuned: Tensors, base: BaseModel, source: str) -> Change:
    names = sorted(tuned, key=natural)
    unknown = [name for name in names if base.counterpart(name) is None]
    base.check_same_model(names, tuned.where, matched=len(unknown) < len(names))
    if 2 * len(unknown) > len(names):  # some names and shapes are everyone's
        raise ValueError(
            f"{base.tensors.where}: expected the base of {tuned.where}; found "
            f"{len(names) - len(unknown)} of its {len(names)} tensors, not {unknown[0]}. It is "
            "another model; give the one that it was tuned from: --base MODEL"
        )
    found = Change(tuned, base, [], [], [])
    for name in names:
        header = tuned.headers[name]
        if base.counterpart(name) is None and base.packed(tuned.layer_of(name)) is None:
            if header.dtype in READABLE:
                found.new.append(name)
            continue
        _place(found, name, header)
    if not found.layers:
        raise ValueError(f"{source}: expected a linear layer whose weight changed; found none.")
    return found


def _place(change: Change, name: str, header: Header) -> None:
    """Sorts one tensor that both have, unless it is unchanged."""
    layer = name.removesuffix(".weight")
    if header.dtype not in READABLE:
        other = change.base.counterpart(name)
        if other is not None and change.base.tensors.headers[other].dtype in READABLE:
            kind = str(header.dtype).removeprefix("torch.")
            change.lost.append(Lost(name, f"stored as {kind}, not as floating-point numbers", None))
        return  # else a buffer
    tuned, held = change.tuned.read(name), change.base.weight_of(name)
    other = change.base.counterpart(name) if isinstance(held, Skipped) else None  # of a vector
    weight = None if other is None else change.base.tensors.read(other)
    weight = held if isinstance(held, Tensor) else weight
    if weight is None or weight.shape != tuned.shape:
        found = "none" if weight is None else f"{tuple(weight.shape)} -> {tuple(tuned.shape)}"
        change.lost.append(Lost(name, f"its shape changed: {found}", None))
        return
    if not (finite(tuned) and finite(weight)):
        raise ValueError(f"{name}: expected finite weights; found NaN or Inf. Nothing was written.")
    if torch.equal(tuned.double(), weight.double()):
        return
    if header_is_linear(name, header):
        in_out = bool(change.base.is_conv1d(layer))
        m, n = header.shape[::-1] if in_out else header.shape
        change.layers.append(Layer(name, in_out, (m, n)))
        return
    kinds = {1: "a bias, a norm or another vector", 2: "an embedding"}
    moved = tuned.double() - weight.double()
    norm = float(torch.linalg.vector_norm(weight.double()))
    share = float(torch.linalg.vector_norm(moved)) / norm if norm else None
    kind = kinds.get(len(header.shape), "a convolution or a stack of experts")
    change.lost.append(Lost(name, kind, share))


def header_is_linear(name: str, header: Header) -> bool:
    """Whether a tensor is the weight of a linear layer, by its name and shape."""
    layer = name.removesuffix(".weight")
    return layer != name and len(header.shape) == 2 and not EMBEDDING.fullmatch(layer)


def _cut(change: Change, one: Layer, goal: Goal, k: int | None) -> tuple[Cut, Factors]:
    """Cuts by the leading directions alone if the rank ``k`` is known, else by all of them. If what
    is left exceeds the smallest direction kept, a larger one was missed: then by all, too."""
    tuned, weight = change.pair(one)
    wanted = k or goal.rank
    if wanted is not None and (some := leading_directions(tuned, weight, wanted)) is not None:
        cut, factors = _cut_along(one, tuned, weight, *some, goal, k)
        left = (cut.spectral_error - cut.uncertainty) * cut.spectral_norm
        if left <= float(some[1][-1]):
            return cut, factors
    return _cut_along(one, tuned, weight, *all_directions(tuned, weight), goal, k)


def _cut_along(
    one: Layer, tuned: Tensor, weight: Tensor, dW: Tensor, sigma: Tensor, Q: Tensor, goal: Goal,
    k: int | None,
) -> tuple[Cut, Factors]:  # fmt: skip
    """dW cut to its projection on the directions Q, and how far what is written lies from it."""
    (k,) = first_ranks(sigma[None], goal, [k])
    norm = float(torch.linalg.matrix_norm(dW))
    exact = Dense(tuned) - Dense(weight)
    while True:
        factors = projected(dW, Q, k)
        left = exact - LowRank(B=factors[0], A=factors[1])
        off = float(frobenius_norm(left)) / norm
        formed = gamma(k + 4) * float(left.magnitude()) / norm  # by the rounding of W' - W - B A
        what = f"{one.layer}: expected float32 factors"
        after = next_rank(goal, k, len(sigma), off + formed, what=what)
        if after is None:
            break
        k = after
    top = spectral_norm(exact, certify=True)
    rest = spectral_norm(left, certify=True)
    spectral = float(rest.value) / float(top.value)
    most, least = float(rest.upper) / float(top.lower), float(rest.lower) / float(top.upper)
    uncertainty = max(most - spectral, spectral - least, formed)
    (matrix,) = (m for m in difference_matrices(one.layer, tuned, weight) if m.matrix == "dW")
    found = Cut(
        one.layer, one.shape, min(one.shape), k, 1.0, norm, float(top.value), off, spectral,
        uncertainty, matrix.note,
    )  # fmt: skip
    return found, factors


def _empty_adapter(change: Change, source: str, base: str) -> LoraPairs:
    """A PEFT adapter with a pair for each layer, and the tensors that are new."""
    headers: dict[str, Header] = {}
    readers: dict[str, Any] = {}
    pairs = []
    for one in change.layers:
        B, A = (f"{PREFIX}{one.layer}.lora_{x}.weight" for x in "BA")
        full = min(one.shape)
        headers[B] = Header((one.shape[0], full), torch.float32)
        headers[A] = Header((full, one.shape[1]), torch.float32)
        pairs.append(Pair(one.layer, B, A, 1.0))
    for name in change.new:
        headers[PREFIX + name] = change.tuned.headers[name]
        readers[PREFIX + name] = partial(change.tuned.read, name)
    modules = sorted({name.rpartition(".")[0] or name for name in change.new}, key=natural)
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "target_modules": [one.layer for one in change.layers],
        "modules_to_save": modules or None,
        "fan_in_fan_out": any(one.in_out for one in change.layers),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "task_type": None,
    }
    tensors = Tensors(source, headers, readers, {"format": "pt"})
    return LoraPairs(source, "peft", ADAPTERS[0], tensors, pairs, content)
