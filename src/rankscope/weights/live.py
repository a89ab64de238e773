"""A model in memory -> matrices to measure: PEFT's LoRA layers, or all weights against a reference.

Letters: m rows (out), n columns (in), r rank. PEFT is not imported: its layers are known by the parts they
hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.weights.difference import checkpoint_matrices, not_chosen
from rankscope.weights.factors import Factors, factor_matrices
from rankscope.weights.lora_config import CHANGES_BASE
from rankscope.weights.matrix import Reading, Skipped
from rankscope.weights.pretrained import Pretrained
from rankscope.weights.tensors import READABLE, Tensors, in_memory

Chosen = re.Pattern[str] | None


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's LoRA layers, by the name that the layer has in the base model."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "lora_embedding_A") and hasattr(module, "base_layer")
    }


def lora_matrices(model: nn.Module, chosen: Chosen = None) -> Reading:
    """W, dW and W + dW of each LoRA layer with its active adapters; what else is trained as Skipped."""
    note = _changed_base(model)
    layers = lora_layers(model)
    for layer, module in layers.items():
        if chosen is not None and not chosen.search(layer):
            yield not_chosen(layer, chosen)
        else:
            yield from _layer_matrices(layer, module, note)
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.")
        if parameter.requires_grad and not any(plain.startswith(f"{layer}.lora_") for layer in layers):
            yield Skipped(
                plain.removesuffix(".weight"), "trained in full, outside B A (modules_to_save or a bias)"
            )


def full_matrices(model: nn.Module, reference: Mapping[str, Tensor], chosen: Chosen = None) -> Reading:
    """W, dW and W + dW of each weight of ``model`` that ``reference``, the pretrained state, holds too."""
    now = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shared = {name: tensor for name, tensor in reference.items() if name in now}

    def brought(name: str) -> Callable[[], Tensor]:
        return lambda: shared[name].to(now[name].device)

    before = in_memory("the reference", shared)
    base = Tensors(before.where, before.headers, {name: brought(name) for name in shared})
    yield from checkpoint_matrices(in_memory("the model", now), Pretrained(base), chosen)


def _layer_matrices(layer: str, module: Any, note: str | None) -> Reading:
    if module.merged:
        yield Skipped(layer, "its adapter is merged into W: call unmerge() first")
        return
    active = [name for name in module.active_adapters if name in module.scaling]
    weight = getattr(module.get_base_layer(), "weight", None)
    why = _unlike_lora(module, active)
    if why is None and (not isinstance(weight, Tensor) or weight.dtype not in READABLE):
        why = f"its base weight is {getattr(weight, 'dtype', 'missing')}, packed: dequantise it first"
    if why is not None:
        yield Skipped(layer, why)
        return
    assert isinstance(weight, Tensor)
    embedding = active[0] in module.lora_embedding_A
    pairs = [_pair(module, name, embedding) for name in active]
    B, A, scale = pairs[0]
    if len(pairs) > 1:  # s B A + s' B' A' = [s B, s' B'] [A; A']
        B = torch.cat([s * b.double() for b, _, s in pairs], dim=1)
        A, scale = torch.cat([a.double() for _, a, _ in pairs]), 1.0
    magnitude = (
        module.lora_magnitude_vector[active[0]].weight if active[0] in module.lora_magnitude_vector else None
    )
    factors = Factors(
        layer,
        B=B,
        A=A,
        scale=scale,
        stored_in_out=embedding or bool(getattr(module, "fan_in_fan_out", False)),
        magnitude=None if magnitude is None else magnitude.detach().flatten(),
        note=note,
    )
    yield from factor_matrices(factors, weight.detach(), hint="")


def _pair(module: Any, name: str, embedding: bool) -> tuple[Tensor, Tensor, float]:
    """B (m, r), A (r, n) and the scale of one adapter."""
    if embedding:
        B, A = module.lora_embedding_B[name], module.lora_embedding_A[name]
    else:
        B, A = module.lora_B[name].weight, module.lora_A[name].weight
    return B.detach().flatten(1), A.detach().flatten(1), float(module.scaling[name])


def _unlike_lora(module: Any, active: list[str]) -> str | None:
    """Why the layer's update can't be had from its factors; None where it can."""
    if not active:
        return "none of its adapters is active"
    variants = {type(module.lora_variant[name]).__name__ for name in active if name in module.lora_variant}
    strange = {name for name in variants if not name.startswith("Dora")}
    if strange:
        return f"a variant of LoRA ({', '.join(sorted(strange))}): its W' - W is not s B A"
    if variants and len(active) > 1:
        return "several adapters with DoRA are active: there is no one W' - W"
    if hasattr(module, "parameter_name") and getattr(module, "num_experts", 1) > 1:
        return f"{module.num_experts} experts (target_parameters) share lora_A: a stack has no stable rank"
    if getattr(module.get_base_layer(), "groups", 1) > 1:
        return "a convolution in groups: its update is not one B A"
    return None


def _changed_base(model: nn.Module) -> str | None:
    configs: Iterator[Any] = iter(getattr(model, "peft_config", {}).values())
    starts = {str(getattr(config, "init_lora_weights", "")).lower() for config in configs}
    changed = sorted(start for start in starts if start.startswith(CHANGES_BASE))
    return (
        f"W here is what {changed[0]} left of the pretrained weight, and dW is measured from it"
        if changed
        else None
    )
