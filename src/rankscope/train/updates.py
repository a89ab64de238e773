"""What a pack has learnt so far, as operators. Letters: S sites of one shape, K trials, m out, n
in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankscope.linalg import Operator


@dataclass(frozen=True)
class Updates:
    """The sites of one shape: ``W`` (S, m, n), and for the trials in ``slots`` ``dW`` and
    ``tuned`` = W + dW, both (S, K, m, n)."""

    layers: list[str]
    slots: slice
    W: Tensor
    dW: Operator
    tuned: Operator
