"""Layers that hold K trials: one frozen base, K adapters, K heads, one dropout mask for all.

Letters: K trials, B batch, T tokens, n in, m out, r the pack's largest rank. Activations are (K*B, T, n): trial k owns
rows k*B .. (k+1)*B. A smaller rank is zero-padded to r. Padding stays exactly zero: its gradient is a product with
the other factor's padding, and AdamW leaves a zero parameter with zero gradient at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Noise:
    """Where a pack's dropout masks come from. A pack draws what a single run draws, in the same order."""

    trials: int
    generator: torch.Generator

    def drop(self, x: Tensor, p: float) -> Tensor:
        """Dropout of ``x`` (K*B, ...) with one mask (B, ...) shared by all trials."""
        shared = x.unflatten(0, (self.trials, -1))
        mask = torch.empty(shared.shape[1:], dtype=x.dtype, device=x.device)
        mask.bernoulli_(1 - p, generator=self.generator).div_(1 - p)
        return (shared * mask).flatten(0, 1)


class SharedDropout(nn.Module):
    """``nn.Dropout`` whose mask is the same for all trials of the pack."""

    def __init__(self, p: float, noise: Noise) -> None:
        super().__init__()
        self.p, self.noise = p, noise

    def forward(self, x: Tensor) -> Tensor:
        return self.noise.drop(x, self.p) if self.training and self.p > 0 else x


class PackedLoRA(nn.Module):
    """base(x) + s B A dropout(x), with the factors of K trials. PEFT's ``lora.Linear``, K at a time."""

    scale: Tensor

    def __init__(
        self, base: nn.Module, *, B: Tensor, A: Tensor, scale: Tensor, dropout: float, noise: Noise
    ) -> None:
        super().__init__()
        self.base = base
        self.A = nn.Parameter(A)  # (K, r, n)
        self.B = nn.Parameter(B)  # (K, m, r)
        self.register_buffer("scale", scale)  # (K,)
        self.dropout = SharedDropout(dropout, noise)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)  # (K*B, T, m)
        K = len(self.A)
        h = torch.bmm(self.dropout(x).reshape(K, -1, x.shape[-1]), self.A.mT)  # (K, B*T, r)
        h = h * self.scale[:, None, None]
        return torch.baddbmm(y.reshape(K, -1, y.shape[-1]), h, self.B.mT).view_as(y)


class PackedLinear(nn.Module):
    """K linear layers of one shape: the trials' own heads."""

    def __init__(self, *, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (K, m, n)
        self.bias = None if bias is None else nn.Parameter(bias)  # (K, m)

    def forward(self, x: Tensor) -> Tensor:
        K, m, n = self.weight.shape
        y = torch.bmm(x.reshape(K, -1, n), self.weight.mT)
        if self.bias is not None:
            y = y + self.bias[:, None, :]
        return y.reshape(*x.shape[:-1], m)
