"""dW = W_FT - W of two stored weights, and how much of it is rounding: for full fine-tunes, and for
weights saved in full beside an adapter (``modules_to_save``), a full-rank change outside B A.

Letters: m rows, n columns, E the change that storing W_FT in its dtype made, u the dtype's unit
roundoff.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rankscope.linalg import Dense, rounding_floor
from rankscope.weights.base_model import BaseModel
from rankscope.weights.lora_names import NO_FACTORS
from rankscope.weights.matrix import Layer, Matrix, Reading, Skipped, skipped
from rankscope.weights.tensors import Tensors, finite, matrices, natural, unreadable

# Rounding error spreads over all directions: it hardly changes sigma_1, but adds to ||dW||_F^2 and
# so to the stable rank. If its share exceeds this, the stable rank is not reported.
TRUSTED_SHARE = 0.1
SAID_SHARE = 1e-3
VOCABULARY = re.compile(
    r"(^|\.)(\w*embed\w*|wte|shared|lm_head|embed_out|decoder|word_embeddings)$"
)
NEEDS_BASE = "saved in full (modules_to_save), a change of full rank outside B A: it needs the base"


def checkpoint_layers(tuned: Tensors, base: BaseModel | None) -> Iterator[Layer]:
    """Every weight matrix of a checkpoint: W alone; with a base W, dW and W + dW, one layer at a
    time.

    ``ValueError`` if checkpoint and base share no name.
    """
    names = sorted(tuned, key=natural)
    met: set[str | None] = set()
    if base is not None:
        met = {base.counterpart(name) for name in names}
        base.check_same_model(names, tuned.where, matched=met != {None})
    for name, following in zip(names, [*names[1:], None], strict=True):
        layer = tuned.layer_of(name)
        if (why := unreadable(name, tuned.headers[name])) is not None:
            yield skipped(layer, why)
        elif base is None:
            yield Layer(layer, partial(_weights, layer, name, following, tuned))
        else:
            yield Layer(layer, partial(against_base, layer, name, tuned, base))
    for name in base.tensors if base is not None else ():
        if name not in met:
            assert base is not None
            yield skipped(
                base.tensors.layer_of(name), f"{name} is only in the base, not in {tuned.where}"
            )


def _weights(layer: str, name: str, following: str | None, tuned: Tensors) -> Reading:
    parts = matrices(layer, tuned.read(name))
    if following is not None:
        tuned.prefetch(following)
    while parts:  # keeps no reference, so that only the matrix being measured is in memory
        yield _weight(*parts.pop(0))


def resized_vocabulary(layer: str, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether tokens were added to or removed from an embedding or output layer (rows of equal
    length)."""
    same_length = len(before) == len(after) == 2 and before[1] == after[1]
    return same_length and VOCABULARY.search(layer) is not None


def difference_matrices(layer: str, tuned: Tensor, weight: Tensor) -> Iterator[Matrix]:
    """W, dW and W + dW from two stored weights (m, n); of different vocabularies the common
    rows."""
    note = None
    if (old := weight.shape[0]) != (new := tuned.shape[0]):
        both = min(old, new)
        tuned, weight = tuned[:both], weight[:both]
        note = (
            f"the vocabulary changed from {old} to {new}: the first {both} rows are "
            "compared, the others left out"
        )
    for matrix in _difference_matrices(layer, tuned, weight):
        yield replace(matrix, note="; ".join(filter(None, (matrix.note, note))) or None)


def _difference_matrices(layer: str, tuned: Tensor, weight: Tensor) -> Iterator[Matrix]:
    broken = [name for name, tensor in (("W", weight), ("W_FT", tuned)) if not finite(tensor)]
    shape = (tuned.shape[0], tuned.shape[1])
    yield _weight(layer, weight)
    if broken:
        note = f"{' and '.join(broken)} {'hold' if len(broken) > 1 else 'holds'} NaN or Inf"
        yield Matrix(layer, "dW", shape, None, "difference", note=note)
    else:
        wide = torch.promote_types(torch.promote_types(tuned.dtype, weight.dtype), torch.float32)
        dW = tuned.to(wide) - weight.to(wide)
        share = rounding_share(tuned, weight, dW)
        trusted = share <= TRUSTED_SHARE
        yield Matrix(
            layer,
            "dW",
            shape,
            Dense(tuned)
            - Dense(weight),  # exact; dW rounded to float32 would miss the bounds by 1e-9
            "difference",
            note=_rounding_note(share, tuned, weight),
            trusted=trusted,
        )
        del dW
    yield _weight(layer, tuned, "W+dW")


def rounding_share(tuned: Tensor, weight: Tensor, dW: Tensor) -> float:
    """The expected share of rounding in ||dW||_F^2: E ||E||_F^2 / ||dW||_F^2.

    E ||E||_F^2 is a third of the floor's square (an error uniform within half a unit in
    the last place). The base is taken to be exactly what training started from, unless its
    dtype is the coarser one: then training started from something finer, and the base's
    rounding counts as well. NaN if dW = 0.
    """
    floor = rounding_floor(tuned).square()
    if torch.finfo(weight.dtype).eps > torch.finfo(tuned.dtype).eps:
        floor = floor + rounding_floor(weight).square()
    energy = torch.linalg.matrix_norm(dW.double()).square()
    return float(floor / 3 / energy) if energy > 0 else 0.0


def against_base(layer: str, name: str, tuned: Tensors, base: BaseModel) -> Reading:
    """W, dW and W + dW of one tensor of a checkpoint, or the reason why there is no difference."""
    if base.counterpart(name) is None and base.packed(layer) is None:
        yield Skipped(layer, f"{name} is new: the base {base.tensors.where} has no such tensor")
        return
    weight, shape = base.weight_of(name), tuned.headers[name].shape
    if isinstance(weight, Skipped):
        yield Skipped(layer, f"in the base {weight.plain}")
    elif weight.shape != shape and not resized_vocabulary(layer, weight.shape, shape):
        changed = f"from {tuple(weight.shape)} to {shape}"
        yield Skipped(layer, f"its shape changed {changed}: there is no difference")
    else:
        after = tuned.read(name)
        pairs = zip(matrices(layer, after), matrices(layer, weight.to(after.device)), strict=True)
        for (part, now), (_, before) in pairs:
            yield from difference_matrices(part, now, before)


def _weight(layer: str, weight: Tensor, matrix: str = "W") -> Matrix:
    shape = (weight.shape[0], weight.shape[1])
    assert matrix in ("W", "W+dW")
    if not finite(weight):
        return Matrix(layer, matrix, shape, None, "weights", note="the weight holds NaN or Inf")  # type: ignore[arg-type]
    return Matrix(layer, matrix, shape, Dense(weight), "weights")  # type: ignore[arg-type]


def _rounding_note(share: float, tuned: Tensor, weight: Tensor) -> str | None:
    if share <= SAID_SHARE:
        return None
    coarse = max(tuned.dtype, weight.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    kind = str(coarse).removeprefix("torch.")
    if share <= TRUSTED_SHARE:
        return (
            f"rounding to {kind} makes up {share:.2g} of ||dW||_F^2: the stable rank is "
            "that much too high"
        )
    return (
        f"below the rounding floor: storage in {kind} accounts for {min(share, 1):.0%} of "
        "||dW||_F^2; "
        "use the factors, or checkpoints in float32"
    )


def saved_layers(
    tensors: Tensors, names: Mapping[str, str], base: BaseModel | None, *, whole: bool = False
) -> Iterator[Layer]:
    """Each saved weight against the base's, or why not; ``names``: name in the base -> tensor.

    ``whole``: they come from a whole model's state, in which most weights are unchanged.
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
            yield Layer(layer, partial(_saved_matrices, layer, name, key, tensors, base, whole))


def _saved_matrices(
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
