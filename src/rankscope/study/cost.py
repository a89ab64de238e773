"""Predicts the cost of a trial, in floating-point operations and bytes, from shapes.

Letters: N weights of the encoder's matrices (embeddings excluded), P trained weights, L layers, d
width, f feed-forward width, T tokens of a row, H heads, r rank, K trials of a pack, V words of a
language model. A multiply and an add are two operations.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from rankscope.study.trial import CHANGES_BASE, Trial

LOGITS = 2**24  # logits of a language model in memory at once (``train.language``)


@dataclass(frozen=True)
class Site:
    """One adapted matrix, m x n: whether its input carries a gradient, whether it sees one token of
    a row only, whether it reads its block's input, which query, key and value share, and its
    name."""

    m: int
    n: int
    differentiated: bool = True
    one_token: bool = False
    reads_block: bool = True
    name: str = ""


@dataclass(frozen=True)
class Shape:
    """The sizes of one model that its cost depends on.

    Where the classifier reads one token, the last block computes no other (``train.encoder``):
    ``one_token`` of the N weights meet one token a row. Before the first adapter all trials of a
    pack are one: ``shared`` of the N weights.
    """

    matrices: int  # N
    all: int  # every parameter, embeddings too
    layers: int
    width: int
    feed_forward: int
    heads: int
    adapted: tuple[Site, ...]
    head: int = 0  # weights of the classifier, trained in every trial
    one_token: int = 0
    shared: int = 0
    vocabulary: int = 0  # V, of a language model: its head is frozen, or part of ``all``

    @property
    def is_trimmed(self) -> bool:
        return self.one_token > 0


@dataclass(frozen=True)
class Rows:
    """The sizes of one task that its cost depends on."""

    train: int
    validation: int
    tokens: float  # mean tokens of a row
    longest: int  # tokens of the longest row
    learnt: float = 0.0  # mean tokens of a row that a language model learns


def operations(trial: Trial, shape: Shape, rows: Rows, *, together: int = 1) -> float:
    """Forward 2N a token; backward 2N to the activations, and 2N more to the weights if they are
    trained; attention 4 T d a layer and token forward, twice that backward; adapters 6P. Validation
    is forward only. ``together`` trials share what is before the first adapter."""
    T = rows.tokens
    full = trial.method == "full"
    steps = trial.total_steps(rows.train)
    trained_rows = steps / -(-rows.train // trial.batch_size) * rows.train
    validated_rows = _evaluations(trial, rows, steps) * rows.validation
    products, attention = _met(shape, T), _attention(shape, T)
    shared = 0 if full else T * shape.shared
    head = rows.learnt * shape.vocabulary * shape.width
    forward = 2 * (products - shared * (1 - 1 / together)) + attention + 2 * head
    backward = 2 * (products - shared) + 2 * attention + 2 * head
    # a head that is trained computes its logits twice
    updated = 2 * products + 4 * head if full else _adapter_operations(trial, shape, T)
    return trained_rows * (forward + backward + updated) + validated_rows * forward


def forward_operations(shape: Shape, tokens: float) -> float:
    """Operations of one row's forward pass: 2N a token, attention 4 T d a layer and token."""
    return 2 * _met(shape, tokens) + _attention(shape, tokens)


def _met(shape: Shape, tokens: float) -> float:
    """The weights applied to a row, each counted as often as it is applied."""
    return tokens * (shape.matrices - shape.one_token) + shape.one_token


def _attention(shape: Shape, tokens: float) -> float:
    return 4 * tokens * tokens * shape.width * (shape.layers - shape.is_trimmed)


@dataclass(frozen=True)
class Widths:
    """Bytes per number that the backward pass keeps: of outputs of matrix products, and of norms
    and softmax."""

    products: int = 4
    norms: int = 4


def widths(trial: Trial, device: str) -> Widths:
    """Everything is float32, unless products are bfloat16; then autocast leaves norms and softmax
    in float32 on CUDA, but not on a CPU."""
    if trial.precision_on(device) == "float32":
        return Widths()
    return Widths(products=2, norms=4 if device == "cuda" else 2)


def memory(trial: Trial, shape: Shape, rows: Rows, widths: Widths = Widths()) -> float:
    """Bytes one more trial of a pack takes, at the peak of a step on the longest rows: weights,
    gradients, AdamW's two moments and the best copy (5 float32 words a trained weight), and what
    the backward pass holds. Derivation: docs/math.md, (22)."""
    d, f, full = shape.width, shape.feed_forward, trial.method == "full"
    p, n = widths.products, widths.norms
    scores = shape.heads * rows.longest * (p + n)
    if shape.is_trimmed:  # the last block keeps next to nothing
        block = p * (3 * d + f) + n * 3 * d + (p * (4 * d + f) if full else 0)
        held = (shape.layers - 1) * (block + scores) + p * 2 * f - n * d
    else:
        held = shape.layers * (p * (9 * d + 5 * f) + n * 3 * d + scores) + p * 2 * f
    trained = shape.all if full else adapter_weights(trial, shape) + shape.head
    inner = 0
    for site in () if full else shape.adapted:
        if not site.one_token:
            inner += p * trial.rank_of(site.name)
            inner += 0 if site.reads_block else p * site.n  # held for the gradient of A alone
            inner += p * site.m if trial.use_dora else 0  # what each gain multiplies
    start = 0 if full else _start_weights(trial, shape)
    if shape.vocabulary:  # what the head is given, chosen, and its gradient
        inner += 3 * n * d
    activations: float = trial.batch_size * rows.longest * (held + inner)
    gradients = 4 * trained
    if full:  # gradients of all weights come up while activations go down
        activations = max(activations, gradients) + min(activations, gradients) / shape.layers
    rounded = _rounded(shape.matrices if full else trained + start, widths)
    return 20 * trained + 4 * start + rounded + activations


def base_memory(trial: Trial, shape: Shape, rows: Rows, widths: Widths = Widths()) -> float:
    """Bytes that a pack takes whatever its trials: the frozen weights, and the dropout masks that
    all share."""
    masks = shape.layers * (2 * shape.width + shape.heads * rows.longest)
    frozen = 0 if trial.method == "full" else 4 * shape.all + _rounded(shape.matrices, widths)
    # logits, their shares of the sum, and the gradient
    words = 12 * min(LOGITS, trial.batch_size * rows.longest * shape.vocabulary)
    return frozen + widths.products * trial.batch_size * rows.longest * masks + words


def _rounded(weights: int, widths: Widths) -> int:
    """The bfloat16 copies that products take."""
    return 0 if widths.products == 4 else widths.products * weights


def adapter_kind(trial: Trial) -> tuple[Any, ...]:
    """What tells the costs of a study's LoRA trials on one model and task from each other."""
    ranks = (trial.rank, *sorted(trial.rank_pattern.items()))
    return (ranks, trial.init_lora_weights, trial.use_dora, *trial.target_modules)


def adapter_weights(trial: Trial, shape: Shape) -> int:
    return sum(trial.rank_of(site.name) * (site.m + site.n) for site in shape.adapted)


def _start_weights(trial: Trial, shape: Shape) -> int:
    """Frozen: what a start took out of the base."""
    weights = adapter_weights(trial, shape)
    return weights if trial.init_lora_weights in CHANGES_BASE else 0


def _adapter_operations(trial: Trial, shape: Shape, tokens: float) -> float:
    """Forward, to both factors, and to the input where that is wanted: 2 r (m + n) a token each.
    What a start took out of the base takes no gradient."""
    frozen = 2 if trial.init_lora_weights in CHANGES_BASE else 0
    return sum(
        (1 if site.one_token else tokens)
        * (6 + 2 * frozen if site.differentiated else 4 + frozen)
        * trial.rank_of(site.name)
        * (site.m + site.n)
        for site in shape.adapted
    )


def _evaluations(trial: Trial, rows: Rows, steps: int) -> int:
    stride = -(-rows.train // trial.batch_size) if trial.eval_every == "epoch" else trial.eval_every
    return -(-steps // stride)


# GPUs by name, for plans of other hardware


@dataclass(frozen=True)
class Device:
    name: str
    memory: float  # bytes
    # dense bfloat16 (float16 where there is none) operations a second, by the maker's data sheet
    peak: float


DEVICES = {
    name.lower(): Device(name, memory * 1e9, peak * 1e12)
    for name, memory, peak in (
        ("T4", 16, 65),
        ("V100", 32, 125),
        ("L4", 24, 121),
        ("A10", 24, 125),
        ("RTX4090", 24, 165),
        ("L40S", 48, 362),
        ("A100", 80, 312),
        ("H100", 80, 989),
        ("H200", 141, 989),
        ("B200", 180, 2250),
    )
}


def device_named(name: str) -> Device:
    """The device of that name; ``ValueError`` with the nearest name otherwise."""
    plain = name.lower().replace(" ", "").replace("-", "").removeprefix("nvidia")
    if plain in DEVICES:
        return DEVICES[plain]
    near = difflib.get_close_matches(plain, DEVICES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"device: expected one of {', '.join(DEVICES)}; found {name!r}{hint}")
