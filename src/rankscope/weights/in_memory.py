"""A model in memory -> matrices to measure: PEFT's layers, or all weights against a reference.

Letters: m rows (out), n columns (in), r rank. PEFT is not imported: its layers are known by the parts they
hold.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.weights.base_model import BaseModel, as_matrix
from rankscope.weights.difference import checkpoint_matrices
from rankscope.weights.layer_update import LayerUpdate, update_matrices
from rankscope.weights.lora_config import CHANGES_BASE
from rankscope.weights.matrix import Reading, Skipped, not_chosen
from rankscope.weights.peft_experts import expert_factors
from rankscope.weights.peft_merge import PEFT_FAILS, change_matrices, merged_weight
from rankscope.weights.tensors import READABLE, Tensors, in_memory, one_line

Chosen = re.Pattern[str] | None


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers, of any method that merges, by the name that the layer has in the base model."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if all(hasattr(module, part) for part in ("base_layer", "get_base_layer", "merge", "merged_adapters"))
    }


def adapter_matrices(model: nn.Module, chosen: Chosen = None) -> Reading:
    """W, dW and W + dW of each PEFT layer with its active adapters; what else is trained as Skipped."""
    note = _changed_base(model)
    layers = adapted_layers(model)
    for layer, module in layers.items():
        name = _parameter(layer, module) if hasattr(module, "parameter_name") else layer
        if chosen is not None and not chosen.search(name):
            yield not_chosen(name, chosen)
        else:
            yield from _layer_matrices(name, module, note)
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.")
        inside = any(plain.startswith(f"{layer}.") for layer in layers)
        if parameter.requires_grad and (not inside or plain.endswith(".bias")):
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
    yield from checkpoint_matrices(in_memory("the model", now), BaseModel(base), chosen)


def _layer_matrices(layer: str, module: Any, note: str | None) -> Reading:
    if module.merged:
        yield Skipped(layer, "its adapter is merged into W: call unmerge() first")
        return
    parts = [getattr(module, part) for part in module.adapter_layer_names]
    active = [name for name in module.active_adapters if any(name in part for part in parts)]
    weight = getattr(module.get_base_layer(), getattr(module, "parameter_name", "weight"), None)
    why = None if active else "none of its adapters is active"
    if why is None and (not isinstance(weight, Tensor) or weight.dtype not in READABLE):
        why = f"its base weight is {getattr(weight, 'dtype', 'missing')}, packed: dequantise it first"
    if why is not None:
        yield Skipped(layer, why)
        return
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if hasattr(module, "parameter_name"):
        yield from _parameter_matrices(layer, module, active, weight, note)
    elif _is_lora(module, active):
        yield from _lora_matrices(layer, module, active, weight, note)
    else:
        yield from _merged_matrices(layer, module, weight, note)


def _lora_matrices(layer: str, module: Any, active: list[str], weight: Tensor, note: str | None) -> Reading:
    embedding = active[0] in module.lora_embedding_A
    B, A, scale = _summed([_pair(module, name, embedding) for name in active])
    magnitude = (
        module.lora_magnitude_vector[active[0]].weight if active[0] in module.lora_magnitude_vector else None
    )
    factors = LayerUpdate(
        layer,
        B=B,
        A=A,
        scale=scale,
        stored_in_out=embedding or bool(getattr(module, "fan_in_fan_out", False)),
        magnitude=None if magnitude is None else magnitude.detach().flatten(),
        note=note,
    )
    yield from update_matrices(factors, weight, hint="")


def _parameter_matrices(
    parameter: str, module: Any, active: list[str], weight: Tensor, note: str | None
) -> Reading:
    """Of each expert of a stack, or of one matrix: rankscope.weights.experts has the layout."""
    E = module.num_experts
    for e in range(E):
        B, A, scale = _summed([expert_factors(*_pair(module, name, False), E, e) for name in active])
        stacked = weight[e] if weight.ndim == 3 else weight
        factors = LayerUpdate(
            f"{parameter}[{e}]" if E > 1 else parameter.removesuffix(".weight"),
            B=B,
            A=A,
            scale=scale,
            stored_in_out=weight.ndim == 3 and not module._did_swap_in_out_features,
            note=note,
        )
        yield from update_matrices(factors, stacked, hint="")


def _merged_matrices(layer: str, module: Any, weight: Tensor, note: str | None) -> Reading:
    """W' - W of any other method: of a copy of the layer, merged by PEFT."""
    try:
        after = merged_weight(copy.deepcopy(module))
    except PEFT_FAILS as error:
        yield Skipped(layer, f"PEFT can't merge it: {one_line(error)}")
        return
    said = "; ".join(filter(None, (f"W' by PEFT's merge of {type(module).__module__.split('.')[-2]}", note)))
    yield from change_matrices(layer, as_matrix(weight.double()), as_matrix(after), said)


def _summed(pairs: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, float]:
    """s B A + s' B' A' + ... = [s B, s' B', ...] [A; A'; ...], as B, A and a scale."""
    if len(pairs) == 1:
        return pairs[0]
    B = torch.cat([s * b.double() for b, _, s in pairs], dim=1)
    return B, torch.cat([a.double() for _, a, _ in pairs]), 1.0


def _parameter(layer: str, module: Any) -> str:
    """The full name of a parameter that was targeted by itself."""
    return f"{layer.replace('.base_layer', '')}.{module.parameter_name}"


def _pair(module: Any, name: str, embedding: bool) -> tuple[Tensor, Tensor, float]:
    """B (m, r), A (r, n) and the scale of one adapter."""
    if embedding:
        B, A = module.lora_embedding_B[name], module.lora_embedding_A[name]
    else:
        B, A = module.lora_B[name].weight, module.lora_A[name].weight
    return B.detach().flatten(1), A.detach().flatten(1), float(module.scaling[name])


def _is_lora(module: Any, active: list[str]) -> bool:
    """Whether W' - W is s B A, or DoRA's function of it: else only PEFT's merge tells."""
    if not hasattr(module, "lora_embedding_A") or not hasattr(module, "scaling") or hasattr(module, "lora_E"):
        return False
    if getattr(module.get_base_layer(), "groups", 1) > 1:
        return False
    variants = [type(module.lora_variant[name]).__name__ for name in active if name in module.lora_variant]
    return all(name.startswith("Dora") for name in variants) and (not variants or len(active) == 1)


def _changed_base(model: nn.Module) -> str | None:
    names: set[str] = set()
    for config in getattr(model, "peft_config", {}).values():
        start = str(getattr(config, "init_lora_weights", "")).lower()
        names |= {start} if start.startswith(CHANGES_BASE) else set()
        names |= {"kasa"} if getattr(config, "kasa_config", None) else set()
    if not names:
        return None
    return (
        f"W here is what {', '.join(sorted(names))} left of the pretrained weight, and dW is measured from it"
    )
