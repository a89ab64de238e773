"""A model in memory -> matrices to measure: PEFT's layers, or all weights against a reference.

Letters: m rows (out), n columns (in), r rank. PEFT is not imported: its layers are recognised by
their attributes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.weights.base_model import NESTED, BaseModel
from rankscope.weights.difference import against_base
from rankscope.weights.layer_update import LayerUpdate, update_matrices
from rankscope.weights.live_weight import base_weight, onloaded
from rankscope.weights.lora_config import CHANGES_BASE
from rankscope.weights.matrix import Reading, Skipped, not_chosen
from rankscope.weights.peft_experts import expert_factors
from rankscope.weights.peft_merge import PEFT_FAILS, change_matrices, merged_weight
from rankscope.weights.sharded import (
    Shards,
    gathered,
    is_wrapper,
    plain_name,
    reference_tensor,
    unwrapped,
    whole_shape,
    without_numbers,
)
from rankscope.weights.tensors import (
    Header,
    Tensors,
    as_matrix,
    from_state_dict,
    one_line,
    unreadable,
    without_wrappers,
)

Chosen = re.Pattern[str] | None
PEFT_PREFIX = re.compile(r"(^|\.)base_model\.model\.")


@dataclass(frozen=True)
class AdaptedLayer:
    """A PEFT layer: its path in the model, and its name in the base model."""

    path: str
    name: str
    module: Any


def adapted_layers(model: nn.Module) -> list[AdaptedLayer]:
    """The PEFT layers of any method that can merge."""
    parts = ("base_layer", "get_base_layer", "merge", "merged_adapters")
    return [
        AdaptedLayer(path, _name_in_base(path, module), module)
        for path, module in unwrapped(model).named_modules()
        if not is_wrapper(module) and all(hasattr(module, part) for part in parts)
    ]


def adapter_matrices(model: nn.Module, chosen: Chosen = None, *, here: bool = True) -> Reading:
    """W, dW and W + dW of each PEFT layer with its active adapters; other trained tensors as
    Skipped.

    With a sharded model every process must iterate to the end; those with ``here=False`` only take
    part in gathering and yield nothing. Raises ``ValueError`` if parameters cannot be gathered.
    """
    model = unwrapped(model)
    shards = Shards(model)
    note = _changed_base(model)
    layers = adapted_layers(model)
    for layer in layers:
        if chosen is not None and not chosen.search(layer.name):
            if here:
                yield not_chosen(layer.name, chosen)
            continue
        with shards.whole(layer.path, layer.module), onloaded(layer.module):
            if here:
                yield from _layer_matrices(layer.name, layer.module, note)
    if here:
        yield from _trained_outside(model, layers)


def full_matrices(
    model: nn.Module, reference: BaseModel | None, chosen: Chosen = None, *, here: bool = True
) -> Reading:
    """W, dW and W + dW of each weight of ``model`` against ``reference``, the pretrained weights.

    With a sharded model every process must iterate to the end; those with ``here=False`` need no
    reference: they only take part in gathering and yield nothing.
    """
    for name, parameter in Shards(unwrapped(model)).parameters():
        layer = name.removesuffix(".weight")
        header = Header(whole_shape(parameter), parameter.dtype)
        if chosen is not None and not chosen.search(layer):
            found = not_chosen(layer, chosen)
        elif (why := unreadable(name, header) or without_numbers(parameter)) is not None:
            found = Skipped(layer, why)
        else:
            with gathered(parameter) as tensor:
                if here:
                    assert reference is not None
                    yield from against_base(
                        layer, name, from_state_dict("the model", {name: tensor}), reference
                    )
            continue
        if here:
            yield found


def state_of(reference: Mapping[str, Tensor]) -> BaseModel:
    """A state dictionary as the base of ``full_matrices``, its names without wrappers.

    DTensors are gathered when they are read; entries that are not tensors are left out. Raises
    ``ValueError`` if two names are equal without their wrappers.
    """
    held = {name: one for name, one in reference.items() if isinstance(one, Tensor)}
    headers = {name: Header(tuple(one.shape), one.dtype) for name, one in held.items()}
    readers = {name: partial(reference_tensor, name, one) for name, one in held.items()}
    return BaseModel(without_wrappers(Tensors("the reference", headers, readers)))


def trained_weights(
    model: nn.Module, chosen: Chosen = None, *, here: bool = True
) -> dict[str, Tensor]:
    """CPU copies of the trained weight matrices; a collective call if they are sharded."""
    copies = {}
    for name, parameter in Shards(unwrapped(model)).parameters():
        matrix = parameter.requires_grad and len(whole_shape(parameter)) > 1
        if matrix and (chosen is None or chosen.search(name.removesuffix(".weight"))):
            with gathered(parameter) as tensor:
                if here:
                    copies[name] = tensor.to("cpu", copy=True)
    return copies


def _name_in_base(path: str, module: Any) -> str:
    """The path without wrappers, PEFT's prefix and nested ``base_layer``."""
    plain = PEFT_PREFIX.sub(r"\1", plain_name(path), count=1).replace(NESTED, "")
    return f"{plain}.{module.parameter_name}" if hasattr(module, "parameter_name") else plain


def _trained_outside(model: nn.Module, layers: list[AdaptedLayer]) -> Iterator[Skipped]:
    for name, parameter in model.named_parameters():
        inside = any(name.startswith(f"{layer.path}.") for layer in layers)
        flat = name.endswith("_flat_param")  # FSDP1's, for many layers at once
        if parameter.requires_grad and not flat and (not inside or name.endswith(".bias")):
            plain = PEFT_PREFIX.sub(r"\1", plain_name(name), count=1)
            yield Skipped(
                plain.removesuffix(".weight"),
                "trained in full, outside B A (modules_to_save or a bias)",
            )


def _layer_matrices(layer: str, module: Any, note: str | None) -> Reading:
    parts = [getattr(module, part) for part in module.adapter_layer_names]
    active = [name for name in module.active_adapters if any(name in part for part in parts)]
    base = module.get_base_layer()
    within = {id(parameter) for parameter in base.parameters()}
    own = [p for p in module.parameters() if id(p) not in within]
    why = None
    if module.merged:
        why = "its adapter is merged into W: call unmerge() first"
    elif module.disable_adapters:
        why = "its adapters are disabled: enable them first"
    elif not active:
        why = "none of its adapters is active"
    elif any(parameter.is_meta for parameter in own):
        why = "its numbers are not in memory (device meta)"
    if why is not None:
        yield Skipped(layer, why)
        return
    parameter = getattr(module, "parameter_name", None)
    weight, said = base_weight(layer, base, parameter)
    note = "; ".join(filter(None, (said, note))) or None
    lora = _is_lora(module, active)
    if isinstance(weight, Skipped) and (not lora or parameter is not None):
        yield Skipped(layer, weight.plain)
    elif said is not None and (not lora or parameter is not None):
        yield Skipped(layer, f"{said}, and merging this method would round it: dequantise it first")
    elif parameter is not None:
        assert isinstance(weight, Tensor)
        yield from _parameter_matrices(layer, module, active, weight, note)
    elif lora:
        yield from _lora_matrices(layer, module, active, weight, note)
    else:
        assert isinstance(weight, Tensor)
        yield from _merged_matrices(layer, module, weight, note)


def _lora_matrices(
    layer: str, module: Any, active: list[str], weight: Tensor | Skipped, note: str | None
) -> Reading:
    embedding = active[0] in module.lora_embedding_A
    B, A, scale = _summed([_pair(module, name, embedding) for name in active])
    magnitude = (
        module.lora_magnitude_vector[active[0]].weight
        if active[0] in module.lora_magnitude_vector
        else None
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
    """For each expert of a stack, or for one matrix; ``peft_experts`` has the layout."""
    E = module.num_experts
    for e in range(E):
        B, A, scale = _summed(
            [expert_factors(*_pair(module, name, False), E, e) for name in active]
        )
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
    """W' - W of any other method, from a copy of the layer that PEFT merges."""
    try:
        after = merged_weight(copy.deepcopy(module))
    except PEFT_FAILS as error:
        yield Skipped(layer, f"PEFT can't merge it: {one_line(error)}")
        return
    said = "; ".join(
        filter(None, (f"W' by PEFT's merge of {type(module).__module__.split('.')[-2]}", note))
    )
    yield from change_matrices(layer, as_matrix(weight.double()), as_matrix(after), said)


def _summed(pairs: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, float]:
    """s B A + s' B' A' + ... = [s B, s' B', ...] [A; A'; ...], as B, A and a scale."""
    if len(pairs) == 1:
        return pairs[0]
    B = torch.cat([s * b.double() for b, _, s in pairs], dim=1)
    return B, torch.cat([a.double() for _, a, _ in pairs]), 1.0


def _pair(module: Any, name: str, embedding: bool) -> tuple[Tensor, Tensor, float]:
    """B (m, r), A (r, n) and the scale of one adapter."""
    if embedding:
        B, A = module.lora_embedding_B[name], module.lora_embedding_A[name]
    else:
        B, A = module.lora_B[name].weight, module.lora_A[name].weight
    return B.detach().flatten(1), A.detach().flatten(1), float(module.scaling[name])


def _is_lora(module: Any, active: list[str]) -> bool:
    """Whether W' - W is s B A or DoRA's function of it; otherwise PEFT's merge is needed."""
    if (
        not hasattr(module, "lora_embedding_A")
        or not hasattr(module, "scaling")
        or hasattr(module, "lora_E")
    ):
        return False
    if getattr(module.get_base_layer(), "groups", 1) > 1:
        return False
    variants = [
        type(module.lora_variant[name]).__name__ for name in active if name in module.lora_variant
    ]
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
        f"W is the pretrained weight as changed by {', '.join(sorted(names))}; dW is relative to it"
    )
