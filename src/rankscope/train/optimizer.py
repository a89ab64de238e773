"""AdamW with one learning rate per trial, and gradient clipping per trial. Letters: K trials.

Loshchilov and Hutter 2019 by torch's own kernel (``torch.optim.AdamW(fused=True)``): a pack steps as K separate runs would.
One pass over a trial's row does it all; single operations would also stumble over the zeros and subnormal numbers of the second
moments of embeddings (a square root of them takes 5 and 35 times as long).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankscope.train.rows import Rows


class PackedAdamW:
    """Args:
    rows: every trained weight; its ``gradients`` are read and spent by ``step``.
    learning_rates: of each trial, the peak rates.
    """

    def __init__(
        self,
        rows: Sequence[Rows],
        *,
        learning_rates: Sequence[float],
        weight_decay: float,
        betas: tuple[float, float],
        epsilon: float,
        max_grad_norm: float,
    ) -> None:
        self.rows = list(rows)
        self.learning_rates = list(learning_rates)
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
        squares = torch.zeros(len(alive), dtype=torch.float64, device=alive.device)
        for group in self.rows:
            squares[group.slots] += torch.linalg.vector_norm(group.gradients, dim=1).double().square()
        norms = squares.sqrt()  # (K,)
        alive = alive & norms.isfinite()
        clip = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)[:, None]
        for group in self.rows:
            group.gradients.mul_(clip[group.slots].to(group.gradients.dtype))
        self.steps += 1
        count, dead = torch.tensor(float(self.steps), device=alive.device), (~alive).float()
        for k, rate in enumerate(self.learning_rates):
            self._update(k, rate * schedule, count, dead[k])
        return alive

    def _update(self, k: int, rate: float, count: Tensor, dead: Tensor) -> None:
        """Trial k; the kernel leaves all as it was where ``dead`` is 1, which a GPU tells itself."""
        buffers = [
            (group, k - group.slots.start, (group.values, group.gradients, mean, square))
            for group, mean, square in zip(self.rows, self.means, self.squares, strict=True)
            if group.slots.start <= k < group.slots.stop
        ]
        for decays in (True, False):
            values, gradients, means, squares = (
                [
                    tensors[i][row, : group.decaying] if decays else tensors[i][row, group.decaying :]
                    for group, row, tensors in buffers
                ]
                for i in range(4)
            )
            torch._fused_adamw_(
                values, gradients, means, squares, [], [count] * len(values), lr=rate, beta1=self.betas[0], beta2=self.betas[1],
                weight_decay=self.weight_decay if decays else 0.0, eps=self.epsilon, amsgrad=False, maximize=False,
                grad_scale=None, found_inf=dead,
            )  # fmt: skip


def linear_schedule(step: int, *, warmup: int, total: int) -> float:
    """Share of the peak rate at ``step`` (from 0): up over ``warmup`` steps, then down to 0 at ``total``."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))
