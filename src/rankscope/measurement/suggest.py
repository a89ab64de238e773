"""Which ranks would have been enough: the energy ranks of each update."""

from __future__ import annotations

import torch
from torch import Tensor

SHARES = (0.90, 0.95, 0.99)


def energy_ranks(sigma: Tensor) -> list[tuple[int, ...]]:
    """Of each row of sigma (N, r) the smallest k whose k largest sigma_i^2 hold each of SHARES of
    ||dW||_F^2: docs/math.md, (3)."""
    energy = sigma.double().square()
    held = energy.cumsum(-1) / energy.sum(-1, keepdim=True)
    wanted = torch.tensor(SHARES, dtype=torch.float64) * (1 - 1e-14)
    below = (held[:, None, :] < wanted[:, None]).sum(-1)  # (N, shares)
    return [tuple(ranks) for ranks in (below + 1).tolist()]
