"""The forward pass of BERT's family (BERT, RoBERTa and their kin), in the modules of a Hugging Face model.

Two things that their own forward pass can't know: up to the first adapter all trials of a pack share one activation,
and a classifier reads the first token only, so the last block computes no other. On the two layers of the lab encoder that
halves the products. Values, and the draws of dropout, are those of the whole: tests compare with PEFT alone.

Letters: K trials (1 while they share), B batch, T tokens, t tokens wanted (T, or 1 in the last block), d width, H heads,
c = d/H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    CamembertForSequenceClassification,
    PreTrainedModel,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)

from rankscope.train.packed import Noise, PackedLoRA, SharedDropout

FAMILY = (
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
    CamembertForSequenceClassification,
)


def shares_prefix(model: PreTrainedModel) -> bool:
    """Whether ``rewire`` knows this model."""
    return isinstance(model, FAMILY) and not model.config.is_decoder


def rewire(model: PreTrainedModel, noise: Noise) -> None:
    """Puts ``Block``s in place of the model's own; names of modules and weights stay. The model then takes (B, T)
    inputs, without a repetition per trial."""
    layers = model.base_model.encoder.layer
    for i, layer in enumerate(layers):
        layers[i] = Block(layer, noise, last=i == len(layers) - 1)


def before_adapters(name: str, prefix: str) -> bool:
    """Whether this weight meets what all trials share: query, key and value of the first block."""
    return name.startswith(f"{prefix}encoder.layer.0.attention.self.")


def of_one_token(name: str, prefix: str, config: Any) -> bool:
    """Whether this weight meets one token a row: the last block's, except key and value; and the pooler."""
    last = f"{prefix}encoder.layer.{config.num_hidden_layers - 1}."
    is_read_by_all = name.startswith((f"{last}attention.self.key", f"{last}attention.self.value"))
    return name.startswith((last, f"{prefix}pooler.")) and not is_read_by_all


class Block(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual and norm."""

    def __init__(self, layer: Any, noise: Noise, *, last: bool) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = layer.attention, layer.intermediate, layer.output
        self.noise, self.last = noise, last

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """x (B, T, d) from the embeddings, then (K, B, T, d); after the last block (K*B, 1, d).
        attention_mask (B, 1, T, T): 0 or the lowest number."""
        x = x[None] if x.ndim == 3 else x
        t = 1 if self.last else x.shape[2]
        h = self._attend(x, attention_mask, t)
        h = self._join(self.attention.output, h, residual=x)
        y = self.intermediate.intermediate_act_fn(self.intermediate.dense(h))
        y = self._join(self.output, y, residual=h, full=x.shape[2])
        return y.expand(self.noise.trials, -1, -1, -1).flatten(0, 1) if self.last else y

    def _attend(self, x: Tensor, attention_mask: Tensor | None, t: int) -> Tensor:
        own, T = self.attention.self, x.shape[2]
        H = own.num_attention_heads
        q, k, v = (
            y.unflatten(-1, (H, -1)).transpose(2, 3)  # (K, B, H, T, c)
            for y in (_first(own.query, x, t), own.key(x), own.value(x))
        )
        scores = (q @ k.mT).mul_(own.scaling)  # (K, B, H, t, T)
        if attention_mask is not None:
            scores = scores.add_(attention_mask[..., :t, :])
        weights = scores.softmax(-1).to(v.dtype)
        if own.dropout.active:
            B = x.shape[1]
            weights = weights * self.noise.mask((B, H, T, T), own.dropout.p, weights)[:, :, :t]
        return (weights @ v).transpose(2, 3).flatten(-2)  # (K, B, t, d)

    def _join(self, part: Any, x: Tensor, *, residual: Tensor, full: int | None = None) -> Tensor:
        """norm(residual + dropout(dense(x))), as RobertaOutput."""
        x, t = part.dense(x), x.shape[2]
        dropout: SharedDropout = part.dropout
        T = residual.shape[2] if full is None else full
        residual = residual[:, :, :t]
        if dropout.active:
            mask = self.noise.mask((x.shape[1], T, x.shape[3]), dropout.p, x)[:, :t]
            return part.LayerNorm(torch.addcmul(residual.to(x.dtype), x, mask))
        return part.LayerNorm(residual + x)


def _first(layer: nn.Module, x: Tensor, t: int) -> Tensor:
    return layer(x, tokens=t) if isinstance(layer, PackedLoRA) else layer(x[:, :, :t])
