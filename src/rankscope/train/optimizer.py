"""AdamW with one learning rate per trial, and gradient clipping per trial. Letters: K trials.

Loshchilov and Hutter 2019 in torch's arithmetic (``torch.optim.AdamW``): a pack steps as K separate runs would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rankscope.train.rows import Rows

_CACHED = 1 << 16  # numbers of each of the four buffers that a core's cache holds together


class PackedAdamW:
    """Args:
    rows: every trained weight; its ``gradients`` are read and spent by ``step``.
    learning_rates: (K,), the peak rates.
    """

    def __init__(
        self,
        rows: Sequence[Rows],
        *,
        learning_rates: Tensor,
        weight_decay: float,
        betas: tuple[float, float],
        epsilon: float,
        max_grad_norm: float,
    ) -> None:
        self.rows = list(rows)
        self.learning_rates = learning_rates.double()
        self.weight_decay = weight_decay
        self.betas, self.epsilon, self.max_grad_norm = betas, epsilon, max_grad_norm
        self.steps = 0
        self.means = [torch.zeros_like(group.values) for group in self.rows]
        self.squares = [torch.zeros_like(group.values) for group in self.rows]

    @torch.no_grad()
    def step(self, *, schedule: float, alive: Tensor) -> Tensor:
        """One update with learning rate ``schedule`` times the peak; spends the gradients.

        Trials that are not alive, or whose gradient is not finite, keep their parameters. -> (K,) bool: still alive
        """
        squares = torch.zeros_like(self.learning_rates)
        for group in self.rows:
            squares[group.slots] += torch.linalg.vector_norm(group.gradients, dim=1).double().square()
        norms = squares.sqrt()  # (K,)
        alive = alive & norms.isfinite()
        clip = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        self.steps += 1
        for group, mean, square in zip(self.rows, self.means, self.squares, strict=True):
            here = group.slots
            self._update(group, mean, square, clip[here], self.learning_rates[here] * schedule, alive[here])
        return alive

    def _update(
        self, group: Rows, mean: Tensor, square: Tensor, clip: Tensor, rate: Tensor, alive: Tensor
    ) -> None:
        b1, b2 = self.betas
        dtype = group.values.dtype
        rate = torch.where(alive, rate, 0.0)[:, None]
        keep = (1 - rate * self.weight_decay).to(dtype)  # (k, 1)
        size, root = (rate / (1 - b1**self.steps)).to(dtype), (1 - b2**self.steps) ** 0.5
        clip, dead = clip[:, None].to(dtype), ~alive[:, None]
        for columns, decays in _blocks(group):
            value, g, m, v = (x[:, columns] for x in (group.values, group.gradients, mean, square))
            g.mul_(clip).masked_fill_(dead, 0.0)
            if decays and self.weight_decay:
                value.mul_(keep)
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            torch.sqrt(v, out=g).div_(root).add_(self.epsilon)
            value.sub_(torch.div(m, g, out=g).mul_(size))


def _blocks(group: Rows) -> Iterator[tuple[slice, bool]]:
    """Columns, and whether they decay; on a CPU few enough that nine operations in a row stay in the cache."""
    K, P = group.values.shape
    width = P if group.values.is_cuda else max(1024, _CACHED // K)
    for start, stop, decays in ((0, group.decaying, True), (group.decaying, P, False)):
        for a in range(start, stop, width):
            yield slice(a, min(a + width, stop)), decays


def linear_schedule(step: int, *, warmup: int, total: int) -> float:
    """Share of the peak rate at ``step`` (from 0): up over ``warmup`` steps, then down to 0 at ``total``."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))
