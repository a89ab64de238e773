"""Other PEFT methods, measured as W' - W after PEFT's own merge.

The base model is not built and none of its code is run: bare layers with the stored weights take
its place. All adapted layers stay in memory, since methods such as VeRA share parts among them; W'
and W' - W are made one layer at a time, in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.linalg import Dense
from rankscope.weights.base_model import BaseModel
from rankscope.weights.matrix import Layer, Matrix, Reading, Skipped
from rankscope.weights.tensors import Tensors, as_matrix, finite, one_line

PREFIX = "base_model.model."
# Why there is no single W' - W, or none that files determine.
NO_DIFFERENCE = {
    **dict.fromkeys(
        (
            "PROMPT_TUNING",
            "MULTITASK_PROMPT_TUNING",
            "P_TUNING",
            "PREFIX_TUNING",
            "CPT",
            "CARTRIDGE",
        ),
        "it trains prompts and changes no weight",
    ),
    "ADAPTION_PROMPT": "it adds modules and changes no weight",
    **dict.fromkeys(
        ("XLORA", "POLY"), "it mixes adapters for each input: there is no single W' - W"
    ),
    **dict.fromkeys(
        ("LILY", "SHADOW"), "what it adds depends on the input: there is no single W' - W"
    ),
    **dict.fromkeys(
        ("LN_TUNING", "BEFT"), "it trains norms or biases: vectors, and no weight matrix"
    ),
    **dict.fromkeys(
        ("UNILORA", "TINYLORA"),
        "its parts are shared out in the model's own order of layers, which no file tells; "
        "merge it "
        "(merge_and_unload, save_pretrained) and type: rankscope measure MERGED --base MODEL",
    ),
}
# The other methods of PEFT 0.21, which can merge. Listed here because importing PEFT takes 4 s.
METHODS = {
    "ADALORA", "ADAMSS", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA",
    "HIRA", "HRA", "IA3", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA",
    "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT",
}  # fmt: skip
# Settings that name other models, other layers, or modules to import.
DROPPED = {
    "arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
    "exclude_modules",
    "inference_mode", "layer_replication", "layers_pattern", "layers_to_transform",
    "lora_ga_config",
    "megatron_config", "megatron_core", "modules_to_save", "peft_version", "revision",
    "runtime_config",
    "target_parameters", "task_type", "trainable_token_indices",
}  # fmt: skip
PEFT_FAILS = (
    ValueError,
    RuntimeError,  # includes NotImplementedError
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    IndexError,
    AssertionError,
)


def merged_layers(
    content: Mapping[str, Any], tensors: Tensors, layers: Mapping[str, list[str]], base: BaseModel
) -> Iterator[Layer]:
    """W, W' - W and W' of each layer that the adapter changes.

    ``content`` is adapter_config.json; ``layers``: layer -> its tensors' names, with those
    shared by all layers under "". Raises ``ValueError``, one line, if PEFT cannot build the
    adapter from these.
    """
    note = f"W' by PEFT's merge of {_said(content)}"
    built = cache(
        partial(_built, content, tensors, layers, base)
    )  # once, when the first layer is read
    for layer in layers:
        if layer:
            yield Layer(
                layer, partial(_layer_matrices, built, layer, base, note, str(content["peft_type"]))
            )


def adapted_layers(
    tensors: Tensors, base: BaseModel
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Layer of the base -> the adapter's tensors for it ("" for those shared by all), and tensors
    that belong to no layer: name in the base -> tensor."""
    layers: dict[str, list[str]] = {"": []}
    others: dict[str, str] = {}
    for name in tensors:
        plain = name.removeprefix(PREFIX)
        parts = plain.split(".")
        heads = (".".join(parts[:cut]) for cut in range(len(parts) - 1, 0, -1))
        layer = next((head for head in heads if base.has_layer(head)), None)
        if layer is not None and plain not in (f"{layer}.weight", f"{layer}.bias"):
            layers.setdefault(layer, []).append(name)
        elif name == plain and name.startswith("base_model."):
            layers[""].append(name)
        else:
            others[plain] = name
    return layers, others


def merged_weight(module: Any) -> Tensor:
    """W' of one PEFT layer, float64: its adapters merged, as PEFT does. The module keeps it."""
    module.double()
    with _quietly():
        module.merge()
    return module.get_base_layer().weight.detach()


def _layer_matrices(
    built: Callable[[], tuple[Any, dict[str, Skipped]]],
    layer: str,
    base: BaseModel,
    note: str,
    kind: str,
) -> Reading:
    model, missing = built()
    if layer in missing:
        yield Skipped(layer, f"{kind}: the true W' - W needs W, and {missing[layer].plain}")
        return
    module = model.base_model.model.get_submodule(layer)
    if not hasattr(module, "merge"):
        yield Skipped(layer, f"PEFT has no layer for it: {type(module).__name__}")
        return
    try:
        after = merged_weight(module)
    except PEFT_FAILS as error:
        yield Skipped(layer, f"PEFT can't merge it: {one_line(error)}")
        return
    weight = base.weight(layer)
    assert isinstance(weight, Tensor)
    before = weight.double()
    module.get_base_layer().weight = None  # measured: release its memory
    if after.shape != before.shape:
        yield Skipped(
            layer, f"PEFT's merge gives {tuple(after.shape)}, the base holds {tuple(before.shape)}"
        )
        return
    yield from change_matrices(layer, as_matrix(before), as_matrix(after), note)


def change_matrices(layer: str, before: Tensor, after: Tensor, note: str) -> Iterator[Matrix]:
    """W, W' - W and W' (m, n), float64."""
    shape = (before.shape[0], before.shape[1])
    broken = [name for name, M in (("W", before), ("W'", after)) if not finite(M)]
    notes = [f"{' and '.join(broken)} not finite: NaN or Inf", note] if broken else [note]
    said = "; ".join(notes)
    yield Matrix(layer, "W", shape, None if "W" in broken else Dense(before), "weights")
    yield Matrix(layer, "dW", shape, None if broken else Dense(after - before), "merge", note=said)
    yield Matrix(layer, "W+dW", shape, None if "W'" in broken else Dense(after), "merge", note=said)


def _built(
    content: Mapping[str, Any], tensors: Tensors, layers: Mapping[str, list[str]], base: BaseModel
) -> tuple[Any, dict[str, Skipped]]:
    """A PEFT model on bare layers with the adapter loaded, and the layers whose W is missing."""
    import peft

    found = {layer: base.weight(layer) for layer in layers if layer}
    weights = {layer: weight for layer, weight in found.items() if isinstance(weight, Tensor)}
    missing = {layer: weight for layer, weight in found.items() if isinstance(weight, Skipped)}
    if not weights:
        return None, missing
    state = {name: tensors.read(name) for layer in ("", *weights) for name in layers.get(layer, ())}
    try:
        with _quietly():
            stand = nn.Module()
            for layer, weight in weights.items():
                _put(stand, layer, _bare(layer, weight, layers[layer], base))
            model = peft.PeftModel(stand, _config(content, list(weights)))
            result = peft.set_peft_model_state_dict(model, state)
    except PEFT_FAILS as error:
        raise ValueError(
            f"{tensors.where}: expected what PEFT {peft.__version__} builds as "
            f"{content['peft_type']}; "
            f"it says: {one_line(error)}"
        ) from error
    absent = set(result.missing_keys)
    named = list(model.named_parameters(remove_duplicate=False))  # a shared tensor has many names
    loaded = {id(parameter) for name, parameter in named if name not in absent}
    for name, parameter in named:
        if parameter.requires_grad and id(parameter) not in loaded:
            raise ValueError(
                f"{tensors.where}: expected {name.replace('.default', '')}; found none."
            )
    return model, missing


def _config(content: Mapping[str, Any], layers: list[str]) -> Any:
    import peft

    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(content["peft_type"])]
    known = set(kind.__dataclass_fields__) - DROPPED
    settings = {name: value for name, value in content.items() if name in known}
    config = kind(**settings)
    if "target_modules" in known:
        config.target_modules = layers
    config.inference_mode = False
    return config


def _bare(layer: str, weight: Tensor, parts: list[str], base: BaseModel) -> nn.Module:
    """A layer of the matching kind that holds nothing but this weight (and bias)."""
    from transformers.pytorch_utils import Conv1D

    shape = weight.shape
    with torch.device("meta"):
        module: nn.Module
        if weight.ndim > 2:
            kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.ndim]
            module = kind(shape[1], shape[0], tuple(shape[2:]))  # type: ignore[arg-type]
        elif base.is_conv1d(layer):
            module = Conv1D(shape[1], shape[0])
        elif any("embedding" in part.removeprefix(PREFIX + layer) for part in parts):
            module = nn.Embedding(*shape)
        else:
            module = nn.Linear(shape[1], shape[0])
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if getattr(module, "bias", None) is not None:
        bias = base.bias(layer)
        module.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias, requires_grad=False)
        )
    return module


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)


def _said(content: Mapping[str, Any]) -> str:
    start = content.get("init_lora_weights")
    return f"{content['peft_type']}{f' (init {start})' if isinstance(start, str) else ''}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences PEFT's advice, and keeps its random initialisation, which is overwritten, from
    changing the global random state."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield
