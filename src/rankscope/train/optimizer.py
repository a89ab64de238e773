"""AdamW with one learning rate per trial, and gradient clipping per trial. Letters: K trials.

Loshchilov and Hutter 2019 by torch's own kernel (``torch.optim.AdamW(fused=True)``): a pack steps
as K separate runs would. One pass over a trial's row does it all; single operations would also
stumble over the zeros and subnormal numbers of the second moments of embeddings (a square root of
them takes 5 and 35 times as long).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rankscope.train.rows import Rows


class PackedAdamW:
    """Args:
    rows: every trained weight; its ``gradients`` are read and spent by ``step``.
    learning_rates: of each trial, the peak rates.
    fused: by torch's kernel; None: where ``has_fused_kernel``.
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
        fused: bool | None = None,
    ) -> None:
        self.rows = list(rows)
        self.learning_rates = list(learning_rates)
        self.weight_decay = weight_decay
        self.betas, self.epsilon, self.max_grad_norm = betas, epsilon, max_grad_norm
        self._kernel: Callable[..., None] = (
            torch._fused_adamw_ if fused or (fused is None and has_fused_kernel()) else plain_adamw
        )
        self.steps = 0
        self.means = [torch.zeros_like(group.values) for group in self.rows]
        self.squares = [torch.zeros_like(group.values) for group in self.rows]

    @torch.no_grad()
    def step(self, *, schedule: float, alive: Tensor) -> Tensor:
        """One update with learning rate ``schedule`` times the peak; spends the gradients.

        Trials that are not alive, or whose gradient is not finite, keep their
        parameters. -> (K,) bool: still alive
        """
        squares = torch.zeros(len(alive), dtype=torch.float64, device=alive.device)
        for group in self.rows:
            squares[group.slots] += (
                torch.linalg.vector_norm(group.gradients, dim=1).double().square()
            )
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
        """Trial k; the kernel leaves all as it was where ``dead`` is 1, which a GPU tells
        itself."""
        buffers = [
            (group, k - group.slots.start, (group.values, group.gradients, mean, square))
            for group, mean, square in zip(self.rows, self.means, self.squares, strict=True)
            if group.slots.start <= k < group.slots.stop
        ]
        for decays in (True, False):
            values, gradients, means, squares = (
                [
                    tensors[i][row, : group.decaying]
                    if decays
                    else tensors[i][row, group.decaying :]
                    for group, row, tensors in buffers
                ]
                for i in range(4)
            )
            self._kernel(
                values, gradients, means, squares, [], [count] * len(values), lr=rate,
                beta1=self.betas[0],
                beta2=self.betas[1], weight_decay=self.weight_decay if decays else 0.0,
                eps=self.epsilon,
                amsgrad=False, maximize=False, grad_scale=None, found_inf=dead,
            )  # fmt: skip


# The kernel behind torch.optim.AdamW(fused=True) is private: it is called only as the torch
# it was tested with has it.
FUSED = (
    "aten::_fused_adamw_(Tensor(a!)[] self, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
    "Tensor(d!)[] exp_avg_sqs, "
    "Tensor(e!)[] max_exp_avg_sqs, Tensor[] state_steps, *, float lr, float beta1, float "
    "beta2, float weight_decay, "
    "float eps, bool amsgrad, bool maximize, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
)


def has_fused_kernel() -> bool:
    """Whether this torch has the kernel, with the arguments that it had."""
    packet = getattr(torch.ops.aten, "_fused_adamw_", None)
    schema = getattr(getattr(packet, "default", None), "_schema", None)
    return hasattr(torch, "_fused_adamw_") and str(schema) == FUSED


def plain_adamw(
    values: Sequence[Tensor], gradients: Sequence[Tensor], means: Sequence[Tensor],
    squares: Sequence[Tensor],
    _: Sequence[Tensor], counts: Sequence[Tensor], *, lr: float, beta1: float, beta2: float,
    weight_decay: float,
    eps: float, found_inf: Tensor, **__: Any,
) -> None:  # fmt: skip
    """The same update in single operations, for a torch without that kernel."""
    if bool(found_inf):
        return
    for p, g, mean, square, count in zip(values, gradients, means, squares, counts, strict=True):
        p.mul_(1 - lr * weight_decay)
        mean.lerp_(g, 1 - beta1)
        square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        step = float(count)
        denominator = (square.sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
        p.addcdiv_(mean, denominator, value=-lr / (1 - beta1**step))


def linear_schedule(step: int, *, warmup: int, total: int) -> float:
    """Share of the peak rate at ``step`` (from 0): up over ``warmup`` steps, then down to 0 at
    ``total``."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))
