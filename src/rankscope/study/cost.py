"""What a trial costs before it runs: floating-point operations and bytes, counted from shapes.

Letters: N weights of the encoder's matrices (embeddings excluded), P weights of the adapters, L layers, d width,
T tokens of a row (mean), H heads. A multiply and an add are two operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.study.plan import Trial


@dataclass(frozen=True)
class Shape:
    """The sizes of one model that its cost depends on."""

    matrices: int  # N
    all: int  # every parameter, embeddings too
    layers: int
    width: int
    heads: int
    adapted: tuple[tuple[int, int], ...]  # (m, n) of each site


@dataclass(frozen=True)
class Rows:
    """The sizes of one task that its cost depends on."""

    train: int
    validation: int
    tokens: float  # mean tokens of a row


def operations(trial: Trial, shape: Shape, rows: Rows) -> float:
    """Forward 2N a token; backward 2N to the activations, and 2N more to the weights if they are trained;
    attention 4 T d a layer and token forward, twice that backward; adapters 6P. Validation is forward only."""
    steps = trial.total_steps(rows.train)
    trained_rows = steps / -(-rows.train // trial.batch_size) * rows.train
    evaluations = _evaluations(trial, rows, steps)
    attention = 4 * rows.tokens * shape.width * shape.layers
    forward = 2 * shape.matrices + attention
    backward = 2 * shape.matrices + 2 * attention
    updated = 2 * shape.matrices if trial.method == "full" else 6 * _adapter(trial, shape)
    return rows.tokens * (
        trained_rows * (forward + backward + updated) + evaluations * rows.validation * forward
    )


def memory(trial: Trial, shape: Shape, rows: Rows) -> float:
    """Bytes one more trial of a pack takes in float32: weights, gradients, AdamW's two moments and the best copy
    (5 words a trained weight), and the activations kept for the backward pass (about 20 d + 3 H T words a token
    and layer, for the attention, the feed-forward of width 4d and the dropouts)."""
    trained = shape.all if trial.method == "full" else _adapter(trial, shape)
    tokens = trial.batch_size * rows.tokens
    return 4 * (5 * trained + tokens * shape.layers * (20 * shape.width + 3 * shape.heads * rows.tokens))


def _adapter(trial: Trial, shape: Shape) -> int:
    return sum((trial.rank or 0) * (m + n) for m, n in shape.adapted)


def _evaluations(trial: Trial, rows: Rows, steps: int) -> int:
    stride = -(-rows.train // trial.batch_size) if trial.eval_every == "epoch" else trial.eval_every
    return -(-steps // stride)
