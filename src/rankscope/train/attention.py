"""Attention with dropout masks that all trials of a pack share, registered with transformers as "rankscope".

transformers calls it with the module that asks; ``noise`` is set on that module at injection. The arithmetic is that of
its own eager attention. Letters: K trials, B batch, H heads, T tokens, c head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "rankscope"


def _attention(
    module: nn.Module,
    query: Tensor,  # (K*B, H, T, c)
    key: Tensor,  # (K*B, H or fewer, T, c)
    value: Tensor,
    attention_mask: Tensor | None,  # (K*B or 1, 1, T, T), 0 or the lowest number
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]  # grouped-query attention: several query heads share a key head
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.mT) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(torch.float32, query.dtype)).to(query.dtype)
    if module.training and dropout > 0:
        weights = module.noise.drop(weights, dropout)  # type: ignore[operator, union-attr]
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)
