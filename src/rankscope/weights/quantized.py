"""Dequantises base weights if a library can; otherwise names their format as the reason.

A dequantised W is what the model computed with while the adapter was trained (QLoRA), not the
weight before quantisation.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankscope.weights.tensors import Tensors, one_line

REFUSED = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "blocks": "mxfp4",
    "_blocks": "mxfp4",
    "weight.quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FOUR_BITS = ("nf4", "fp4")
MLX_BITS = (2, 3, 4, 5, 6, 8)
ROWS = 256  # unpacked at a time


def packing(tensors: Tensors, layer: str) -> str | None:
    """The quantisation format of the layer's weight; None if it is unquantised or absent."""
    if (header := tensors.headers.get(f"{layer}.weight")) is not None:
        for kind in FOUR_BITS:
            if f"{layer}.weight.quant_state.bitsandbytes__{kind}" in tensors:
                return f"bitsandbytes {kind}"
        if f"{layer}.SCB" in tensors and header.dtype == torch.int8:
            return "bitsandbytes int8"
        if header.dtype in FLOAT8:
            return "float8"
        if f"{layer}.scales" in tensors and header.dtype == torch.uint32:
            return "MLX"
    return next(
        (name for ending, name in REFUSED.items() if joined(layer, ending) in tensors), None
    )


def joined(layer: str, ending: str) -> str:
    return f"{layer}{ending}" if ending.startswith("_") else f"{layer}.{ending}"


def dequantised(
    tensors: Tensors, layer: str, kind: str, settings: Mapping[str, Any] | None = None
) -> Tensor | str:
    """W in float32, or the reason why it cannot be read. ``settings``: "quantization" of MLX's
    config.json."""
    if kind == "float8":
        return _float8(tensors, layer)
    if kind == "MLX":
        return _mlx(tensors, layer, settings or {})
    if not kind.startswith("bitsandbytes"):
        return (
            f"the base's weight is packed ({kind}): give an unquantised base, or dequantise "
            "it first"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        return (
            f"the base's weight is packed ({kind}): type pip install bitsandbytes, or give "
            "an unquantised base"
        )
    try:
        return _int8(tensors, layer) if kind.endswith("int8") else _four_bits(tensors, layer)
    except (
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OSError,
    ) as error:
        return (
            f"the base's weight is packed ({kind}), and bitsandbytes can't unpack it: "
            f"{one_line(error)}"
        )


def _float8(tensors: Tensors, layer: str) -> Tensor | str:
    """One scale for the whole matrix, a row or a block: weight_scale_inv (DeepSeek) or weight_scale
    multiply."""
    weight = tensors.read(f"{layer}.weight").float()
    name = next(
        (f"{layer}.{s}" for s in ("weight_scale_inv", "weight_scale") if f"{layer}.{s}" in tensors),
        None,
    )
    if name is None:
        return f"{layer}.weight is float8 without a weight_scale: its values are unknown"
    scale = tensors.read(name).float()
    if scale.numel() == 1:
        return weight * scale.reshape(())
    scale = scale.reshape(-1, 1) if scale.ndim == 1 else scale
    if (
        scale.ndim != 2
        or weight.ndim != 2
        or any(s > n for s, n in zip(scale.shape, weight.shape, strict=True))
    ):
        return f"{name} {tuple(scale.shape)} doesn't scale {tuple(weight.shape)}"
    for axis in (0, 1):
        blocks = math.ceil(weight.shape[axis] / scale.shape[axis])
        if scale.shape[axis] > 1:
            blocks = 1 << (blocks - 1).bit_length()  # 128 in practice; the last block is cut
            if math.ceil(weight.shape[axis] / blocks) != scale.shape[axis]:
                return f"{name} {tuple(scale.shape)} doesn't scale {tuple(weight.shape)}"
        scale = scale.repeat_interleave(blocks, axis).narrow(axis, 0, weight.shape[axis])
    return weight * scale


def _mlx(tensors: Tensors, layer: str, settings: Mapping[str, Any]) -> Tensor | str:
    """scales q + biases, by groups along a row; the q of a row are one stream of bits, lowest first
    (mlx.core.quantize's affine mode)."""
    own = settings.get(layer)
    given = own if isinstance(own, Mapping) else settings
    bits, group, mode = given.get("bits"), given.get("group_size"), given.get("mode", "affine")
    whole = isinstance(bits, int) and isinstance(group, int) and group > 0
    if not whole or bits not in MLX_BITS or f"{layer}.biases" not in tensors:
        return (
            "the base's weight is packed (MLX): expected its config.json beside it, with "
            f"quantization of bits {', '.join(map(str, MLX_BITS))}, a group_size and biases; "
            f"found bits {bits!r:.20}, group_size {group!r:.20}, mode {mode!r:.20}"
        )
    packed = tensors.read(f"{layer}.weight")
    scales, biases = (tensors.read(f"{layer}.{name}").float() for name in ("scales", "biases"))
    assert isinstance(bits, int)
    assert isinstance(group, int)
    n = packed.shape[-1] * 32 // bits
    groups = (*packed.shape[:-1], n // group)
    if packed.ndim != 2 or groups[-1] * group != n or {scales.shape, biases.shape} != {groups}:
        return (
            f"the base's weight is packed (MLX): {tuple(packed.shape)} words of {bits} bits in "
            f"groups of {group} don't fit scales {tuple(scales.shape)}"
        )
    parts = []
    for rows in packed.split(ROWS):
        stream = np.unpackbits(rows.numpy().view(np.uint8), axis=1, bitorder="little")
        stream = stream.reshape(len(rows), n, bits)
        whole_numbers = np.packbits(stream, axis=2, bitorder="little")[:, :, 0]
        parts.append(torch.from_numpy(whole_numbers).float())
    q = torch.cat(parts).reshape(*groups, group)
    return (scales[:, :, None] * q + biases[:, :, None]).flatten(1)


def _int8(tensors: Tensors, layer: str) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    return int8_vectorwise_dequant(
        tensors.read(f"{layer}.weight"), tensors.read(f"{layer}.SCB").float()
    )


def _four_bits(tensors: Tensors, layer: str) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    start = f"{layer}.weight."
    parts = {
        name.removeprefix(start): tensors.read(name) for name in tensors if name.startswith(start)
    }
    state = QuantState.from_dict(parts, device=torch.device("cpu"))
    packed = tensors.read(f"{layer}.weight")
    if math.prod(state.shape) != 2 * packed.numel():
        raise ValueError(f"{tuple(state.shape)} out of {packed.numel()} bytes")
    return dequantize_4bit(packed, state).float()
