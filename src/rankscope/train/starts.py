"""Initial values of an adapter's factors: PEFT's ``init_lora_weights``.

PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024) initialise them from leading parts of W and
subtract these from the base: y = (W - s B0 A0) x + s B A x. A pack keeps the W that its trials
share and gives each trial its frozen B0 and A0, so that dW = s (B A - B0 A0), of rank 2r, against
the pretrained W.

Letters: m out, n in, r rank, p = min(m, n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.study.trial import CHANGES_BASE, Init, Trial
from rankscope.train.spectra import measurable

Pair = tuple[Tensor, Tensor]  # B (m, r), A (r, n)


@torch.no_grad()
def draw_factors(B: Tensor, A: Tensor, init: Init, generator: torch.Generator) -> None:
    """The random starts, from our own stream, in place: B (m, r), A (r, n).

    True: B = 0 and A uniform in +-1/sqrt(n), which is Kaiming-uniform with a = sqrt 5. "gaussian":
    B = 0, A from N(0, 1/r^2). "orthogonal": the even and the odd rows of a random orthogonal
    matrix between two Gaussian ones, so that neither factor is zero and B A is.
    """
    r, n = A.shape
    B.zero_()
    if init == "gaussian":
        A.normal_(0.0, 1 / r, generator=generator)
    elif init == "orthogonal":
        Q = torch.linalg.qr(torch.randn(r, r, generator=generator))[0]
        A.copy_((torch.randn(n, r // 2, generator=generator) @ Q[0::2]).mT / 10)
        B.copy_(torch.randn(r // 2, len(B), generator=generator).mT @ Q[1::2] / 10)
    else:
        bound = 1 / math.sqrt(n)
        A.uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class Leading:
    """The parts of one W (m, n) that trials of any rank start from, in float32 as PEFT has it.

    "pissa": U (m, p), sigma (p,) and V^T (p, n). "olora": Q, None and R of W = Q R; where a layer
    stores the transpose, as GPT-2's do, PEFT 0.21 decomposes that and fails.
    """

    left: Tensor
    sigma: Tensor | None
    right: Tensor

    def cut(self, trial: Trial) -> Pair:
        """The trial's first B and A; s B A is the part of W that they stand for."""
        r = trial.rank
        if self.sigma is None:
            return self.left[:, :r], self.right[:r]
        root = (self.sigma[:r] / trial.scale).sqrt()
        return self.left[:, :r] * root, root[:, None] * self.right[:r]


def leading(W: Tensor, init: Init) -> Leading | None:
    """None where the start leaves the base as it is."""
    if init not in CHANGES_BASE:
        return None
    if init == "pissa":
        return Leading(*torch.linalg.svd(W.float(), full_matrices=False))
    Q, R = torch.linalg.qr(W.float())
    return Leading(Q, None, R)


def against_pretrained(B: Tensor, A: Tensor, start: Pair | None) -> Pair:
    """B' (..., m, 2r) and A' (..., 2r, n) with B' A' = B A - B0 A0, float64: (B - B0) A +
    B0 (A - A0), which does not cancel while an update is small. As given without a start; on the
    CPU where the device has no float64."""
    if start is None:
        return measurable(B), measurable(A)
    B, A, B0, A0 = (measurable(x).double() for x in (B, A, *start))
    return torch.cat([B - B0, B0], dim=-1), torch.cat([A, A - A0], dim=-2)


def to_save(B: Tensor, A: Tensor, start: Pair | None) -> Pair:
    """[B, -B0] and [A; A0]: what PEFT's ``path_initial_model_for_weight_conversion`` writes, an
    adapter of rank 2r on the original base."""
    if start is None:
        return B, A
    B0, A0 = (x.to(B) for x in start)
    return torch.cat([B, -B0], dim=-1), torch.cat([A, A0], dim=-2)
