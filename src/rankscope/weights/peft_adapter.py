"""PEFT's LoRA adapters: adapter_config.json and adapter_model.safetensors (or .bin).

Letters: m rows (out), n columns (in), r rank. ``lora_A.weight`` (r, n), ``lora_B.weight`` (m, r);
embeddings ``lora_embedding_A`` (r, vocabulary), ``lora_embedding_B`` (dimension, r); convolutions A
(r, in, k, k), B (out, r, 1, 1).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rankscope.weights.base_model import NESTED, BaseModel
from rankscope.weights.difference import saved_layers
from rankscope.weights.factor_forms import fused_factor
from rankscope.weights.layer_update import LayerUpdate, update_matrices
from rankscope.weights.lora_config import LoraConfig, lora_config, original_layer
from rankscope.weights.lora_settings import UNPLACED, PeftSettings
from rankscope.weights.matrix import Layer, Reading, Skipped
from rankscope.weights.peft_experts import expert_matrices, targeted_parameter
from rankscope.weights.peft_merge import merged_layers
from rankscope.weights.tensors import READABLE, Tensors, natural, renamed

# In files not written by PEFT's save_pretrained, the adapter's name stands before the suffix.
PART = re.compile(
    r"(?P<layer>.+?)\.(?P<part>lora_\w+)(\.(?!weight$|bias$)[^.]+)?(?P<bias>\.bias)?(\.weight)?"
)
WRAPPED = re.compile(r"\.(?:modules_to_save\.[^.]+|original_module)(?=\.)")
# PEFT's prefix, after whatever a trainer put before it
OUTER = re.compile(r"^(?:base_model\.(?:model\.)?|.*?\.base_model\.model\.)")
PAIRS = (("lora_B", "lora_A"), ("lora_embedding_B", "lora_embedding_A"))


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, not read yet; ``sites``: layer -> part, such as ``lora_A`` -> tensor name."""

    config: LoraConfig
    content: Mapping[str, Any]  # adapter_config.json
    tensors: Tensors
    sites: dict[str, dict[str, str]]
    others: dict[str, str]  # name in the base -> tensor name
    own: BaseModel | None = None  # the base, if the file is a whole model's state


def open_adapter(path: Path, content: Mapping[str, Any], tensors: Tensors) -> Adapter:
    """A LoRA adapter, its tensors sorted by layer; ``content`` is that of
    adapter_config.json at ``path``.

    Raises ``ValueError``, one line, if it is malformed.
    """
    adapter = sort_parts(tensors, content, lora_config(path, content))
    if not adapter.sites:
        raise ValueError(
            f"{tensors.where}: expected LoRA tensors (....lora_A.weight, ....lora_B.weight); "
            "found none."
        )
    return adapter


def sort_parts(tensors: Tensors, content: Mapping[str, Any], config: LoraConfig) -> Adapter:
    """Groups the tensors of an adapter by layer; each ends up in ``sites`` or in ``others``."""
    sites: dict[str, dict[str, str]] = {}
    others: dict[str, str] = {}
    frozen: dict[str, str] = {}  # weights before training
    for name in sorted(tensors, key=natural):
        plain = OUTER.sub("", name)
        found = PART.fullmatch(plain)
        if found is None:
            if ".original_module." in plain:
                frozen[plain] = name
            else:
                others[WRAPPED.sub("", plain)] = name
            continue
        part = found["part"] + (found["bias"] or "")
        site = sites.setdefault(found["layer"], {})
        if part in site:
            raise ValueError(
                f"{tensors.where}: expected one {part} for {found['layer']}; found "
                f"{site[part]} and {name}."
            )
        site[part] = name
    linear = [layer for layer, site in sites.items() if "lora_A" in site]
    wrapped = {plain: name for plain, name in others.items() if f"{NESTED}." in plain}
    if not linear or not all(f"{layer}{NESTED}.weight" in wrapped for layer in linear):
        return Adapter(config, content, tensors, sites, others | frozen)
    names = {plain.replace(NESTED, ""): name for plain, name in wrapped.items()}
    names |= {WRAPPED.sub("", plain): name for plain, name in frozen.items()}
    rest = {plain: name for plain, name in others.items() if plain not in wrapped}
    names = rest | names
    return Adapter(config, content, tensors, sites, rest, BaseModel(renamed(tensors, names)))


def adapter_layers(adapter: Adapter, given: BaseModel | None) -> Iterator[Layer]:
    """dW of each adapted layer, with a base also W and W + dW; then what was saved in full."""
    base = given or adapter.own
    if given is not None and not adapter.config.target_parameters:
        sources = [original_layer(layer, adapter.config.replicated) for layer in adapter.sites]
        given.check_same_model(
            [one for one in sources if isinstance(one, str)], adapter.tensors.where
        )
    if base is not None and adapter.config.unlike_lora is not None and adapter.config.mergeable:
        layers = {layer: list(site.values()) for layer, site in adapter.sites.items()}
        yield from merged_layers(adapter.content, adapter.tensors, layers, base)
    else:
        for layer in adapter.sites:
            yield Layer(layer, partial(_site_matrices, adapter, layer, base))
    whole = adapter.own is not None
    changed = {name: key for name, key in adapter.others.items() if ".modules_to_save." in key}
    if whole and given is None:
        yield from saved_layers(adapter.tensors, changed, base)
        others = {name: key for name, key in adapter.others.items() if name not in changed}
        yield from saved_layers(adapter.tensors, others, None, whole=True)
    else:
        yield from saved_layers(adapter.tensors, adapter.others, given, whole=whole)


def _site_matrices(adapter: Adapter, layer: str, base: BaseModel | None) -> Reading:
    config, site = adapter.config, adapter.sites[layer]
    pair = factor_names(adapter, layer)
    for part in site:
        if part.endswith(".bias"):
            yield Skipped(f"{layer}.{part}", "a trained bias (lora_bias): a vector outside B A")
    why = beyond_lora(site, pair) or _without_base(config) or unlike_matrix(adapter, layer, *pair)
    if why is not None:
        yield Skipped(layer, why)
        return
    B, A = (adapter.tensors.read(site[part]).flatten(1) for part in pair)  # (m, r), (r, n)
    targets = config.target_parameters
    if targets and (target := targeted_parameter(targets, adapter.sites, layer)) is not None:
        parameter, doubt = target
        yield from expert_matrices(config, parameter, B, A, base, doubt=doubt)
        return
    weight, note = _weight(adapter, layer, base)
    if A.shape[0] > B.shape[1] and adapter.tensors.headers[site[pair[0]]].shape[2:] == (1,):
        B, weight, placed = _placed(adapter, layer, B, A, weight)
        note = "; ".join(filter(None, (note, placed)))
    else:
        check_fit(adapter, layer, B, A)
    magnitude = site.get("lora_magnitude_vector")
    factors = LayerUpdate(
        layer.replace(NESTED, ""),
        B=B,
        A=A,
        scale=config.scale_of(layer, config.rank_of(layer)),
        stored_in_out=pair == PAIRS[1]
        or _stored_in_out(config, layer, base, weight, (B.shape[0], A.shape[1])),
        magnitude=adapter.tensors.read(magnitude).flatten() if magnitude else None,
        note="; ".join(filter(None, (config.doubt_of(layer), note))) or None,
    )
    model = shlex.quote(config.base_model) if config.base_model else "MODEL"
    yield from update_matrices(factors, weight, hint=f"so type --base {model}")


def _placed(
    adapter: Adapter, layer: str, B: Tensor, A: Tensor, weight: Tensor | Skipped | None
) -> tuple[Tensor, Tensor | Skipped | None, str]:
    """B of PEFT 0.2's ``MergedLinear``, a grouped convolution (rows, r, 1), as one factor."""
    r = B.shape[1]
    if A.shape[0] % r or r != adapter.config.rank_of(layer):
        check_fit(adapter, layer, B, A)
    total = None
    if isinstance(weight, Tensor):  # (in, out) where only the first side fits A
        total = weight.shape[1 if weight.shape[0] == A.shape[1] != weight.shape[1] else 0]
    settings = PeftSettings(adapter.config, adapter.content)
    fusion, doubt = settings.fusion(layer, A.shape[0] // r, B.shape[0], total)
    if doubt == UNPLACED and weight is not None:
        weight = Skipped(layer, f"W and W + dW: {UNPLACED}")
    said = f"MergedLinear: {A.shape[0] // r} fused projections of rank {r}"
    return fused_factor(B, fusion), weight, f"{said}; {doubt}" if doubt else said


def _without_base(config: LoraConfig) -> str | None:
    if config.unlike_lora is None or not config.mergeable:
        return config.unlike_lora
    return f"{config.unlike_lora}: the true one needs the base, so type --base MODEL"


def factor_names(adapter: Adapter, layer: str) -> tuple[str, str]:
    """The names of B and A among the layer's parts. ``ValueError`` if one of them is missing."""
    site = adapter.sites[layer]
    for B, A in PAIRS:
        if B in site and A in site:
            return B, A
        if B in site or A in site:
            there, missing = (B, A) if B in site else (A, B)
            raise ValueError(
                f"{adapter.tensors.where}: expected {missing} beside {there} for {layer}; "
                "found none."
            )
    raise ValueError(
        f"{adapter.tensors.where}: expected lora_A and lora_B for {layer}; found "
        f"{', '.join(site)} only."
    )


def beyond_lora(site: dict[str, str], pair: tuple[str, str]) -> str | None:
    """Parts that plain LoRA and DoRA do not have; None if there are none."""
    strange = [
        part
        for part in site
        if part not in (*pair, "lora_magnitude_vector") and not part.endswith(".bias")
    ]
    return f"{', '.join(strange)} besides B and A: neither LoRA nor DoRA" if strange else None


def unlike_matrix(adapter: Adapter, layer: str, B: str, A: str) -> str | None:
    """Why the factors do not form one matrix B A; None if they do."""
    site, headers = adapter.sites[layer], adapter.tensors.headers
    parts = (B, A, *(part for part in site if part == "lora_magnitude_vector"))
    for part in parts:
        if (dtype := headers[site[part]].dtype) not in READABLE:
            return (
                f"{part} is stored as {str(dtype).removeprefix('torch.')}, not as a "
                "floating-point matrix"
            )
    b, a = headers[site[B]].shape, headers[site[A]].shape
    if len(a) < 2 or len(b) < 2 or 0 in (*a, *b):
        raise ValueError(
            f"{adapter.tensors.where}: expected B (m, r) and A (r, n) for {layer}; found B {b} "
            f"and A {a}."
        )
    if len(a) > 2 and b[1] != a[0] and a[0] % b[1] == 0:
        return f"a convolution in {a[0] // b[1]} groups: its update is not one B A"
    return None


def check_fit(adapter: Adapter, layer: str, B: Tensor, A: Tensor) -> None:
    if B.shape[1] != A.shape[0]:
        raise ValueError(
            f"{adapter.tensors.where}: expected B (m, r) and A (r, n) with one r for {layer}; "
            f"found B {tuple(B.shape)} and A {tuple(A.shape)}."
        )
    has_magnitude = "lora_magnitude_vector" in adapter.sites[layer]
    adapter.config.check(layer, A.shape[0], has_magnitude=has_magnitude)


def _weight(
    adapter: Adapter, layer: str, base: BaseModel | None
) -> tuple[Tensor | Skipped | None, str | None]:
    """W, and a note on where it came from."""
    if base is None:
        return None, None
    # PEFT saves a resized embedding beside its factors: that is the W they were added to.
    resized = adapter.others.get(f"{layer}.base_layer.weight")
    if resized is not None and base.shape_of(layer) not in (
        None,
        adapter.tensors.headers[resized].shape,
    ):
        change = f"from {base.shape_of(layer)} to {adapter.tensors.headers[resized].shape}"
        return adapter.tensors.read(
            resized
        ), f"W is the adapter's own copy: its shape changed {change}"
    if base is adapter.own and base is not None:
        found = base.weight(layer.replace(NESTED, ""))
        return found, None if isinstance(found, Skipped) else base.said_of(layer)
    source = original_layer(layer, adapter.config.replicated)
    if isinstance(source, Skipped):
        return source, None
    weight = base.weight(source)
    if isinstance(weight, Skipped):
        return Skipped(layer, weight.why), None
    if source != layer:
        return weight, f"W is that of {source} (layer_replication)"
    return weight, base.said_of(layer)


def _stored_in_out(
    config: LoraConfig,
    layer: str,
    base: BaseModel | None,
    weight: Tensor | Skipped | None,
    shape: tuple[int, int],
) -> bool:
    """Whether the base stores (in, out): by shape, if square by type, else by ``fan_in_fan_out``.

    PEFT keeps one flag for all layers, set by the last adapted layer, so the flag comes last here.
    """
    if isinstance(weight, Tensor) and weight.ndim > 2:
        return False
    if isinstance(weight, Tensor) and shape[0] != shape[1]:
        return tuple(weight.shape) == (shape[1], shape[0])
    if base is not None and (known := base.is_conv1d(layer)) is not None:
        return known
    return config.fan_in_fan_out
