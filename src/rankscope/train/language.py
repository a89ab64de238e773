"""The loss of a language model: of the next token, without all logits at once.

The logits of a batch, trials x tokens x vocabulary, are larger than anything else in training, so
the head is applied to a few tokens at a time. Where the head is frozen, as under LoRA, the gradient
of each token's loss to its own hidden state is taken at once, and logits are never kept; where it
is trained they are computed again in the backward pass.

Letters: K trials, B batch, T tokens, n tokens that are learnt, d width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rankscope.study.cost import LOGITS
from rankscope.train.pack import Pack, outputs
from rankscope.train.text_tokens import IGNORED

Head = Callable[[Tensor], Tensor]


def token_losses(pack: Pack, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The cross-entropy of every token that is learnt, in nats: inputs, labels (B, T) -> (K, n) in
    the order of ``learnt(labels)``.

    Through the model's own logits where the pack says so (``own_head``), else a few tokens at a
    time: ``isolation`` compares the two before a pack trains.
    """
    K, where = len(pack.trials), learnt(labels)
    with _no_caches(pack.model):
        found = outputs(pack, inputs, hidden=not pack.own_head)
    device = found.device
    rows, places = (index.to(device) for index in where)
    targets = labels[where[0], where[1] + 1].to(device).repeat(K)
    chosen = found.unflatten(0, (K, -1))[:, rows, places].flatten(0, 1)  # (K n, d) or (K n, V)
    if pack.own_head:
        losses = F.cross_entropy(chosen.float(), targets, reduction="none")
    else:
        losses = by_parts(chosen, targets, head_of(pack.model))
    return losses.unflatten(0, (K, -1)).to(pack.params[0].values.dtype)


def learnt(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and places (n,) of the positions whose next token is learnt: labels (B, T)."""
    rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return rows, places


def head_of(model: Any) -> Head:
    """What the model does to a hidden state (N, d) to get logits (N, V), in float32 at least."""
    head, config = model.get_output_embeddings(), model.config
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2

    def logits(hidden: Tensor) -> Tensor:
        found = head(hidden)
        if scale != 1 or divisor != 1:
            found = found * scale / divisor
        if cap is not None:
            found = torch.tanh(found / cap) * cap
        return found.to(torch.promote_types(found.dtype, torch.float32))

    logits.trained = any(p.requires_grad for p in head.parameters())  # type: ignore[attr-defined]
    logits.size = head.weight.shape[0]  # type: ignore[attr-defined]
    return logits


def by_parts(hidden: Tensor, targets: Tensor, head: Any) -> Tensor:
    size = max(1, LOGITS // head.size)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    if not (torch.is_grad_enabled() and (hidden.requires_grad or head.trained)):
        return torch.cat([_losses(h, t, head) for h, t in parts])
    if head.trained:
        return torch.cat([checkpoint(_losses, h, t, head, use_reentrant=False) for h, t in parts])
    losses, gradients = [], []
    for h, t in parts:
        h = h.detach().requires_grad_()
        found = _losses(h, t, head)
        losses.append(found.detach())
        gradients += torch.autograd.grad(found.sum(), h)
    return _Known.apply(hidden, torch.cat(losses), torch.cat(gradients))


def _losses(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    return F.cross_entropy(head(hidden), targets, reduction="none")


class _Known(torch.autograd.Function):
    """Losses (N,) of hidden states (N, d) whose gradients are known. Losses of different tokens
    share no hidden state, so the gradient of their sum is that of each."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, losses: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (own,) = gradients, ctx.saved_tensors
        return g[:, None].to(own.dtype) * own, None, None


@contextlib.contextmanager
def _no_caches(model: Any) -> Iterator[None]:
    """Keys and values are kept for generation only, and would hold memory that nobody counts."""
    kept = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = kept
