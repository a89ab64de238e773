"""Shapes of batches."""

from __future__ import annotations

import numpy as np
import torch


def broadcast(*shapes: tuple[int, ...]) -> torch.Size:
    """What `torch.broadcast_shapes` gives; but that one's first call imports SymPy, which takes a second.

    RuntimeError where they don't fit.
    """
    try:
        return torch.Size(np.broadcast_shapes(*shapes))
    except ValueError as error:
        raise RuntimeError(str(error)) from None
