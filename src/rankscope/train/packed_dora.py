"""DoRA in a pack: y = m / ||W + s B A|| (W x + s B A x) + b, row by row, for K trials.

Liu et al. 2024, eq. 5; the norm takes no gradient (their section 4.3), as in PEFT. Letters: K
trials, k of a bucket, n in, m out, r rank, N rows.

In training each trial's weight is either formed, which takes 2 N m n operations more (its own
gradient), or its gain multiplies the outputs, which takes 6 N r (m + n) for the factors and about
ten passes over the outputs. One of them is taken for all batches, so that what ``isolation`` has
proved is what trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.train.model import weight_of
from rankscope.train.packed import PackedLoRA
from rankscope.train.starts import to_save

PASSES = 400  # operations that take as long as ten passes over one output (a CPU, float32)


class PackedDoRA(PackedLoRA):
    """PEFT's ``use_dora``, K at a time.

    Args:
        magnitude: (k, m) a bucket.
    """

    squares: Tensor

    def __init__(self, base: nn.Module, *, magnitude: Sequence[Tensor], **lora: Any) -> None:
        super().__init__(base, **lora)
        self.magnitude = nn.ParameterList(magnitude)
        W = weight_of(base)
        self.register_buffer("squares", W.double().square().sum(1))  # (m,)
        m, n = W.shape
        ranks = [A.shape[1] for A in self.A for _ in A]
        self.forms_weights = 2 * n * m < 6 * (m + n) * sum(ranks) / len(ranks) + PASSES * m

    def forward(self, x: Tensor, *, tokens: int | None = None) -> Tensor:
        # products in bfloat16 would round a small update away in W + s B A
        exact = not torch.is_autocast_enabled(x.device.type)
        if self.forms_weights and exact and torch.is_grad_enabled():
            return self._by_weights(self.checked(x), tokens)
        out = super().forward(x, tokens=tokens)
        norms = self._norms()
        gain = torch.cat([m / norm for m, norm in zip(self.magnitude, norms, strict=True)])
        flat = out.reshape(len(gain), -1, out.shape[-1])  # (K, N, m)
        gain = gain[:, None]  # (K, 1, m)
        bias: Tensor | None = getattr(self.base, "bias", None)
        # the gain in float32, also where products are in bfloat16; the result is rounded, as PEFT's
        result = flat * gain if bias is None else torch.addcmul(bias * (1 - gain), flat, gain)
        return result.to(out.dtype).view(out.shape)

    def _by_weights(self, x: Tensor, tokens: int | None) -> Tensor:
        W = weight_of(self.base)
        tuned = []
        parts = zip(self.buckets, self.B, self.A, self.starts(), strict=True)
        for bucket, B, A, start in parts:
            B, A = to_save(B, A, start)
            tuned.append(torch.baddbmm(W.expand(len(B), -1, -1), self.scale[bucket] * B, A))
        weights = torch.cat(tuned)  # (K, m, n)
        norms = torch.linalg.vector_norm(weights.detach(), dim=-1)
        weights = weights * (torch.cat([*self.magnitude]) / norms)[..., None]
        met = x[..., :tokens, :] if x.ndim > 2 else x
        K, m, n = weights.shape
        lead = met.shape[:-1] if x.ndim < 4 else (K, *met.shape[1:-1])
        groups = 1 if x.ndim == 4 and len(x) == 1 else K
        flat = met.reshape(groups, -1, n).expand(K, -1, -1)  # (K, N, n)
        bias: Tensor | None = getattr(self.base, "bias", None)
        y = (
            torch.bmm(flat, weights.mT)
            if bias is None
            else torch.baddbmm(bias.expand(K, 1, m), flat, weights.mT)
        )
        return y.view(*lead, m)

    @torch.no_grad()
    def _norms(self) -> list[Tensor]:
        """(k, m) a bucket: of the rows of W + s B A (minus what the start took out), from W A^T and
        A A^T; B A is never formed."""
        W = weight_of(self.base)
        found = []
        with torch.autocast(W.device.type, enabled=False):
            parts = zip(self.buckets, self.B, self.A, self.starts(), strict=True)
            for bucket, B, A, start in parts:
                B, A = to_save(B, A, start)
                s = self.scale[bucket].to(W)
                each = (
                    (W @ A.flatten(0, 1).mT).unflatten(1, A.shape[:2]).transpose(0, 1)
                )  # (k, m, r)
                crossed = 2 * s * each + s.square() * (B @ (A @ A.mT))
                found.append((self.squares.to(W) + (crossed * B).sum(-1)).clamp(min=0).sqrt())
        return found
