"""The forward pass of BERT's family (BERT, RoBERTa, MPNet and their kin), in the modules of a
Hugging Face model.

It saves two kinds of work: up to the first adapter all trials of a pack share one activation, and
the last block computes the first token only, since a classifier reads no other. On the two layers
of the lab encoder that halves the products. Values and dropout masks are those of the model's own
forward pass: ``isolation`` compares them with PEFT's before every pack.

Letters: K trials (1 while they share), B batch, T tokens, t tokens wanted (T, or 1 in the last
block), d width, H heads, c = d/H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    CamembertForSequenceClassification,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)

from rankscope.train.packed import DropoutMasks, PackedLoRA, SharedDropout

FAMILY = (
    BertForSequenceClassification,
    CamembertForSequenceClassification,
    MPNetForSequenceClassification,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)


def is_patchable(model: PreTrainedModel) -> bool:
    """Whether ``patch_encoder`` knows this model."""
    return isinstance(model, FAMILY) and not getattr(model.config, "is_decoder", False)


def patch_encoder(model: PreTrainedModel, masks: DropoutMasks) -> None:
    """Puts ``Block``s in place of the model's own; names of modules and weights stay. The model
    then takes (B, T) inputs, without a repetition per trial."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, SharedDropout(module.p, masks))
    layers = model.base_model.encoder.layer
    for i, layer in enumerate(layers):
        kind = MPNetBlock if isinstance(model, MPNetForSequenceClassification) else Block
        layers[i] = kind(layer, masks, last=i == len(layers) - 1)


def before_adapters(name: str, prefix: str) -> bool:
    """Whether the input of this weight is shared by all trials: query, key and value of the first
    block."""
    first = f"{prefix}encoder.layer.0.attention."
    return name.startswith((f"{first}self.", f"{first}attn.")) and not name.startswith(
        f"{first}attn.o."
    )


def of_one_token(name: str, prefix: str, config: Any) -> bool:
    """Whether this weight is applied to one token of each row: those of the last block, except key
    and value, and the pooler."""
    last = f"{prefix}encoder.layer.{config.num_hidden_layers - 1}."
    read_by_all = ("self.key.", "self.value.", "attn.k.", "attn.v.")
    is_read_by_all = name.startswith(tuple(f"{last}attention.{part}" for part in read_by_all))
    return name.startswith((last, f"{prefix}pooler.")) and not is_read_by_all


class Block(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual and norm."""

    def __init__(self, layer: Any, masks: DropoutMasks, *, last: bool) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = (
            layer.attention,
            layer.intermediate,
            layer.output,
        )
        self.masks, self.last = masks, last

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """x (B, T, d) from the embeddings, then (K, B, T, d); after the last block (K*B, 1, d).
        attention_mask (B, 1, T, T): 0 or the lowest number."""
        own, after = self.attention.self, self.attention.output
        return self._both(
            x, attention_mask, own, (own.query, own.key, own.value), after, after.dense
        )

    def _both(
        self,
        x: Tensor,
        bias: Tensor | None,
        own: Any,
        qkv: tuple[nn.Module, ...],
        after: Any,
        out: nn.Module,
    ) -> Tensor:
        x = x[None] if x.ndim == 3 else x
        t = 1 if self.last else x.shape[2]
        h = self._attend(x, bias, own, qkv, t)
        h = self._join(after, out(h), residual=x)
        y = self.output.dense(self.intermediate.intermediate_act_fn(self.intermediate.dense(h)))
        y = self._join(self.output, y, residual=h, full=x.shape[2])
        return y.expand(self.masks.trials, -1, -1, -1).flatten(0, 1) if self.last else y

    def _attend(
        self, x: Tensor, bias: Tensor | None, own: Any, qkv: tuple[nn.Module, ...], t: int
    ) -> Tensor:
        """bias (B or 1, H or 1, T, T): what is added to the scores."""
        H, T = own.num_attention_heads, x.shape[2]
        query, key, value = qkv
        q, k, v = (
            y.unflatten(-1, (H, -1)).transpose(2, 3)  # (K, B, H, T, c)
            for y in (_first(query, x, t), key(x), value(x))
        )
        scores = (q @ k.mT).mul_(q.shape[-1] ** -0.5)  # (K, B, H, t, T)
        if bias is not None:
            scores = scores.add_(bias[..., :t, :])
        weights = scores.softmax(-1).to(v.dtype)
        if own.dropout.active:
            B = x.shape[1]
            weights = weights * self.masks.mask((B, H, T, T), own.dropout.p, weights)[:, :, :t]
        return (weights @ v).transpose(2, 3).flatten(-2)  # (K, B, t, d)

    def _join(self, part: Any, x: Tensor, *, residual: Tensor, full: int | None = None) -> Tensor:
        """norm(residual + dropout(x)), as RobertaOutput."""
        t, dropout = x.shape[2], part.dropout
        T = residual.shape[2] if full is None else full
        residual = residual[:, :, :t]
        if dropout.active:
            mask = self.masks.mask((x.shape[1], T, x.shape[3]), dropout.p, x)[:, :t]
            return part.LayerNorm(torch.addcmul(residual.to(x.dtype), x, mask))
        return part.LayerNorm(residual + x)


class MPNetBlock(Block):
    """MPNet's: the output projection stands inside its attention, and scores have a bias for
    relative positions."""

    def forward(  # type: ignore[override]
        self, x: Tensor, attention_mask: Tensor | None, position_bias: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor]:
        """position_bias (B, H, T, T), the same for all rows."""
        own = self.attention.attn
        bias = position_bias[:1] if attention_mask is None else position_bias[:1] + attention_mask
        return (self._both(x, bias, own, (own.q, own.k, own.v), self.attention, own.o),)


def _first(layer: nn.Module, x: Tensor, t: int) -> Tensor:
    return layer(x, tokens=t) if isinstance(layer, PackedLoRA) else layer(x[:, :, :t].contiguous())
