"""AdamW with one learning rate per trial, and gradient clipping per trial. Letters: K trials.

Loshchilov and Hutter 2019 in torch's arithmetic (``torch.optim.AdamW``): a pack steps as K separate runs would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PackedAdamW:
    """Args:
    parameters: each (K, ...); in a pack of one, any shape.
    learning_rates: (K,), the peak rates.
    decays: whether weight decay applies, per parameter (not to biases and norms, as in Hugging Face's Trainer).
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        learning_rates: Tensor,
        decays: Sequence[bool],
        weight_decay: float,
        betas: tuple[float, float],
        epsilon: float,
        max_grad_norm: float,
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rates = learning_rates
        self.weight_decays = [weight_decay if decay else 0.0 for decay in decays]
        self.betas, self.epsilon, self.max_grad_norm = betas, epsilon, max_grad_norm
        self.steps = 0
        self._means = [torch.zeros_like(p) for p in self.parameters]
        self._squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, *, schedule: float, alive: Tensor) -> Tensor:
        """One update with learning rate ``schedule`` times the peak; clears the gradients.

        Trials that are not alive, or whose gradient is not finite, keep their parameters. -> (K,) bool: still alive
        """
        K = len(self.learning_rates)
        gradients = [p.grad.reshape(K, -1) for p in self.parameters if p.grad is not None]
        assert len(gradients) == len(self.parameters)
        norms = torch.stack([g.square().sum(1) for g in gradients]).sum(0).sqrt()  # (K,)
        alive = alive & norms.isfinite()
        clip = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)[:, None]
        rate = (self.learning_rates * schedule * alive)[:, None]
        self.steps += 1
        b1, b2 = self.betas
        size, root = rate / (1 - b1**self.steps), (1 - b2**self.steps) ** 0.5
        all_alive = bool(alive.all())
        for p, g, mean, square, decay in zip(
            self.parameters, gradients, self._means, self._squares, self.weight_decays, strict=True
        ):
            g = g * clip
            if not all_alive:
                g = torch.where(alive[:, None], g, 0.0)
            flat, mean, square = p.view(K, -1), mean.view(K, -1), square.view(K, -1)
            if decay:
                flat.mul_(1 - rate * decay)
            mean.lerp_(g, 1 - b1)
            square.mul_(b2).addcmul_(g, g, value=1 - b2)
            flat.sub_(size * mean / (square.sqrt().div_(root).add_(self.epsilon)))
            p.grad = None
        return alive


def linear_schedule(step: int, *, warmup: int, total: int) -> float:
    """Share of the peak rate at ``step`` (from 0): up over ``warmup`` steps, then down to 0 at ``total``."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))
