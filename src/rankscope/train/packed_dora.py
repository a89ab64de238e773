"""DoRA in a pack: y = m / ||W + s B A|| (W x + s B A x) + b, row by row, for K trials.

Liu et al. 2024, eq. 5; the norm takes no gradient (their section 4.3), as in PEFT. Letters: K
trials, k of a bucket, n in, m out, r rank, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.train.model import weight_of
from rankscope.train.packed import PackedLoRA
from rankscope.train.starts import to_save


class PackedDoRA(PackedLoRA):
    """PEFT's ``use_dora``, K at a time.

    Args:
        magnitude: (k, m) a bucket.
    """

    squares: Tensor

    def __init__(self, base: nn.Module, *, magnitude: Sequence[Tensor], **lora: Any) -> None:
        super().__init__(base, **lora)
        self.magnitude = nn.ParameterList(magnitude)
        self.register_buffer("squares", weight_of(base).double().square().sum(1))  # (m,)

    def forward(self, x: Tensor, *, tokens: int | None = None) -> Tensor:
        out = super().forward(x, tokens=tokens)
        norms = self._norms()
        gain = torch.cat([m / norm for m, norm in zip(self.magnitude, norms, strict=True)])
        flat = out.reshape(len(gain), -1, out.shape[-1])  # (K, N, m)
        gain = gain[:, None]  # (K, 1, m)
        bias: Tensor | None = getattr(self.base, "bias", None)
        # the gain in float32, also where products are in bfloat16; the result is rounded, as PEFT's
        result = flat * gain if bias is None else torch.addcmul(bias * (1 - gain), flat, gain)
        return result.to(out.dtype).view(out.shape)

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
