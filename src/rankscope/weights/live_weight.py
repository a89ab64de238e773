"""The base weight of an adapted layer in memory as a plain tensor: dequantised from
bitsandbytes, torchao or HQQ, loaded back if accelerate offloaded it.

A dequantised W is what the model computes with (QLoRA), not the weight before quantisation.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rankscope.weights.matrix import Skipped
from rankscope.weights.tensors import READABLE, one_line

WEIGHTS = ("weight", "in_proj_weight")  # the latter is nn.MultiheadAttention's fused weight
NAMES = {"Params4bit": "bitsandbytes 4 bits", "Int8Params": "bitsandbytes int8"}
FAILS = (ImportError, AttributeError, RuntimeError, ValueError, TypeError)


def base_weight(
    layer: str, base: nn.Module, own: str | None
) -> tuple[Tensor | Skipped, str | None]:
    """The weight of a base layer with a note, or the reason why there is none.

    ``own`` names the adapted parameter if it is not a layer's weight.
    """
    names = WEIGHTS if own is None else (own,)
    weight = next((w for name in names if (w := getattr(base, name, None)) is not None), None)
    if isinstance(weight, Tensor) and weight.is_meta:
        why = "its base's numbers are not in memory (device meta)"
    elif (packed := _packed(base, weight)) is not None:
        kind, unpack = packed
        try:
            return unpack().detach(), f"W is dequantised from {kind}"
        except FAILS as error:
            why = f"the base weight is packed ({kind}) and can't be unpacked: {one_line(error)}"
    elif not isinstance(weight, Tensor):
        why = f"its base layer, {type(base).__name__}, has no weight"
    elif weight.dtype not in READABLE:
        kind = str(weight.dtype).removeprefix("torch.")
        why = f"the base weight is {kind}, quantized: dequantise it first"
    else:
        return weight.detach(), None
    return Skipped(layer, f"W and W + dW: {why}"), None


def _packed(base: Any, weight: Any) -> tuple[str, Callable[[], Tensor]] | None:
    """What packed the weight of ``base``, and the function that unpacks it; None if nothing did."""
    if weight is None and type(base).__name__ == "HQQLinear":
        return "HQQ", base.dequantize
    if (kind := NAMES.get(type(weight).__name__)) is not None:
        return kind, lambda: _from_bitsandbytes(base, weight)
    if type(weight).__module__.startswith("torchao."):  # it says float32, and cannot be summed
        return f"torchao's {type(weight).__name__}", weight.dequantize
    return None


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Loads parameters that accelerate has offloaded to memory or disk, within this context."""
    away = [part for part in module.modules() if hasattr(part, "_hf_hook")]
    if not away or not any(parameter.is_meta for parameter in module.parameters()):
        yield
        return
    align: Any = importlib.import_module("accelerate.utils").align_module_device
    with ExitStack() as stack:
        for part in away:
            stack.enter_context(align(part))
        yield


def _from_bitsandbytes(base: Any, weight: Any) -> Tensor:
    functional: Any = importlib.import_module("bitsandbytes.functional")
    if type(weight).__name__ == "Params4bit":
        found = functional.dequantize_4bit(weight.data, weight.quant_state)
    else:
        scales = weight.SCB if weight.SCB is not None else base.state.SCB
        if scales is None or weight.data.dtype != functional.torch.int8:
            raise ValueError("its scales (SCB) are not there yet")
        found = functional.int8_vectorwise_dequant(weight.data, scales)
    return found.float()
