"""K variants of trained updates over one frozen base, evaluated together.

Each edited layer holds K merged weights W + dW, or one if all variants agree; each head K copies.
All other weights are the base's, or, for variants of one full fine-tune, that fine-tune's.
Activations below the first layer with different weights are computed once for all variants.
Letters: K variants, B batch, T tokens, m out, n in, C classes, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from rankscope.evaluation.matrices import Matrices, is_expert
from rankscope.evaluation.trained import Trained
from rankscope.linalg import LowRank, Operator
from rankscope.train.encoder import is_patchable, patch_encoder
from rankscope.train.loading import sharing_weights
from rankscope.train.model import trained_in_full, weight_of
from rankscope.train.packed import DropoutMasks, NotIsolated, packed_copies

# share of the largest logit: the merged weights are equal, only the order of sums differs
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class Edited:
    """A variant ready for evaluation: dW of every changed layer, and its trained update."""

    trained: Trained
    updates: Mapping[str, Operator]


def together(one: Edited, other: Edited) -> bool:
    """Whether one pack can hold both: of adapters, or with the same rest of a full fine-tune."""
    rests = one.trained.rest, other.trained.rest
    return rests[0] is rests[1] or not any(rests)


class PackedWeights(nn.Module):
    """K linear layers with a shared bias, and a shared weight if all are equal.

    x (K*B, T, n), (K*B*T, n), or (K or 1, B, T, n), 1 while the variants still share it; the result
    is shared as long as the weight is.
    """

    def __init__(self, layer: nn.Module, masks: DropoutMasks) -> None:
        super().__init__()
        bias: Any = layer.bias
        self.masks, self.bias = masks, bias
        self.register_buffer("weight", weight_of(layer)[None].clone())  # (K or 1, m, n)

    weight: Tensor

    def hold(self, weights: Sequence[Tensor]) -> None:
        """Sets one weight (m, n) per variant; if all are the same object, it is stored once."""
        same = all(W is weights[0] for W in weights)
        self.weight = weights[0][None] if same else torch.stack(list(weights))

    def forward(self, x: Tensor) -> Tensor:
        K, n = self.masks.trials, self.weight.shape[-1]
        if x.ndim < 4 and x.numel() % (K * self.masks.batch * n):
            raise NotIsolated(
                f"an edited layer meets {tuple(x.shape)}, which is not {K} variants x "
                f"{self.masks.batch} rows"
            )
        weight = self.weight.to(x.dtype)
        if len(weight) == 1:
            return F.linear(x, weight[0], None if self.bias is None else self.bias.to(x.dtype))
        lead = x.shape[:-1] if x.ndim < 4 else (K, *x.shape[1:-1])
        shared = x.ndim == 4 and len(x) == 1
        flat = x.reshape(1 if shared else K, -1, n).expand(K, -1, n)
        y = torch.bmm(flat, weight.mT)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*lead, -1)


class VariantPack:
    """Args:
    model: the pretrained model; it is changed.
    layers: the layers that any variant edits or that training changed.
    K: the most variants evaluated together; with K = 1, and if ``layers`` has experts, by the
        model's own forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[str],
        *,
        K: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # experts are not modules of their own, so there can't be K of each
        self.K = K = 1 if any(map(is_expert, layers)) else K
        self.device, self.dtype = device, dtype
        inside = f"{model.base_model_prefix}."
        outside = [name for name in trained_in_full(model) if not name.startswith(inside)]
        self.reads_features = outside[0] if outside else None  # the first layer of the head
        model.to(device=device, dtype=dtype).eval()
        self.stock = sharing_weights(model).eval()
        self.matrices = Matrices(self.stock)
        self.base = {name: self.matrices[name] for name in layers}
        self.model, self.masks = model, DropoutMasks(K, 0, device)
        self.patched = is_patchable(model) and K > 1
        self.heads: dict[str, Any] = {}
        self.sites: dict[str, PackedWeights] = {}
        if K > 1:
            self._pack()
        self._rest: dict[str, Tensor] = {}  # the base's values that a fine-tune's have replaced
        self.variants: list[Edited] = []
        self._only: dict[str, Tensor] = {}  # with K = 1, the variant's weights by their names

    def _pack(self) -> None:
        heads = trained_in_full(self.model)
        self.heads = {name: packed_copies(layer, self.masks) for name, layer in heads.items()}
        self.sites = {
            name: PackedWeights(self.model.get_submodule(name), self.masks) for name in self.base
        }
        if self.patched:
            patch_encoder(self.model, self.masks)
        for name, module in [*self.sites.items(), *self.heads.items()]:
            self.model.set_submodule(name, module)
        self.model.to(device=self.device, dtype=self.dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def hold(self, variants: Sequence[Edited]) -> None:
        """Loads up to K variants: all of one full fine-tune, or all of adapters."""
        rest = variants[0].trained.rest
        assert 1 <= len(variants) <= self.K
        assert all(v.updates.keys() <= self.base.keys() for v in variants)  # none left out unseen
        assert all(v.trained.rest is rest or not (v.trained.rest or rest) for v in variants)
        self._exchange(rest)
        self.variants, self.masks.trials = list(variants), len(variants)
        self._only = self._weights(variants[0]) if self.K == 1 else {}
        for name, site in self.sites.items():
            site.hold(self._merged_each(name))
        for name, head in self.heads.items():
            for key in dict(head.named_parameters()):
                copies = [v.trained.head[f"{name}.{key}"] for v in variants]
                stacked = torch.stack(copies).to(device=self.device, dtype=self.dtype)
                setattr(head, key, nn.Parameter(stacked, requires_grad=False))

    def _merged_each(self, layer: str) -> list[Tensor]:
        """W + dW for each variant; one object if they share the update."""
        found: dict[int, Tensor] = {}
        for one in self.variants:
            if (key := id(one.updates.get(layer))) not in found:
                found[key] = self.merged(one, layer)
        return [found[id(one.updates.get(layer))] for one in self.variants]

    def merged(self, variant: Edited, layer: str) -> Tensor:
        """W + dW (m, n), summed in float64; the base's W if dW is zero."""
        W, update = self.base[layer], variant.updates.get(layer)
        if update is None or is_zero(update):
            return W
        return (W.double().cpu() + update.to_dense().double().cpu()).to(W)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """All variants on one batch (B, T) -> (variants, B, C)."""
        if self.K == 1:
            return self.alone(self.variants[0], inputs)[None]
        self.masks.batch = len(inputs["input_ids"])
        K = self.masks.trials
        repeats = 1 if self.patched else K
        repeated = {name: x.to(self.device).repeat(repeats, 1) for name, x in inputs.items()}
        found: Tensor = self.model(**repeated).logits
        return found.to(self.dtype).unflatten(0, (K, -1))

    def alone(self, variant: Edited, inputs: Mapping[str, Tensor]) -> Tensor:
        """One variant by the stock model with merged weights. (B, C)"""
        weights = self._only or self._weights(variant)
        placed = {name: x.to(self.device) for name, x in inputs.items()}
        found: Tensor = functional_call(self.stock, weights, (), placed).logits
        return found.to(self.dtype)

    def _weights(self, variant: Edited) -> dict[str, Tensor]:
        """This variant's merged weights and head, by their names in the stock model."""
        merged = {name: self.merged(variant, name) for name in self.base}
        return self.matrices.as_parameters(merged) | {
            key: x.to(device=self.device, dtype=self.dtype)
            for key, x in variant.trained.head.items()
        }

    @torch.no_grad()
    def prove(self, inputs: Mapping[str, Tensor]) -> None:
        """``NotIsolated`` if some variant's logits differ from the stock model's with merged
        weights, or depend on other variants. With K = 1 there is nothing to check."""
        if self.K == 1:
            return
        together = self.logits(inputs)
        for variant, found in zip(self.variants, together, strict=True):
            wanted = self.alone(variant, inputs)
            finite = wanted.isfinite()
            size = float(wanted[finite].abs().max()) if finite.any() else 0.0
            off = float((found - wanted)[finite].abs().max()) if finite.any() else 0.0
            if not (found.isfinite().equal(finite) and off <= _ROUNDING[self.dtype] * size + 1e-7):
                raise NotIsolated(
                    f"logits differ from the stock model's by {off:.1g} of {size:.1g}"
                )

    def _exchange(self, rest: Mapping[str, Tensor]) -> None:
        """Restores the base's values, then sets a fine-tune's."""
        parameters = dict(self.stock.named_parameters())
        for name, value in self._rest.items():
            parameters[name].copy_(value)
        self._rest = {name: parameters[name].clone() for name in rest}
        for name, value in rest.items():
            parameters[name].copy_(value)


def is_zero(update: Operator) -> bool:
    """Whether a low-rank update has a B of zeros."""
    return isinstance(update, LowRank) and not bool(update.B.any())
