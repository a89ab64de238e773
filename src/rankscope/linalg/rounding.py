"""Rounding: unit roundoff, error constants, what storage in a narrow dtype adds; and what keeps a
caller's autocast and default device out of a measurement."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor


def unit_roundoff(dtype: torch.dtype) -> float:
    """u, half the distance from 1 to the next number: 2^-53 for float64, 2^-24, 2^-11
    (float16), 2^-8 (bfloat16)."""
    return torch.finfo(dtype).eps / 2


def gamma(k: int, dtype: torch.dtype = torch.float64) -> float:
    """k u / (1 - k u): the error constant of a sum of k products, in any order (Higham 2002,
    section 3.1)."""
    product = k * unit_roundoff(dtype)
    assert product < 1
    return product / (1 - product)


def rounding_floor(W: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The most that rounding every entry of W to `dtype` (default: W's own) can change it in
    Frobenius norm.

    (*batch, m, n) -> (*batch) float64. Half a unit in the last place of each entry, added
    in squares; the typical change is 1 / sqrt(3) of it. A difference of two rounded
    checkpoints whose norm is not well above the floors of both is mostly rounding, and so
    is its stable rank: docs/math.md, (20).
    """
    info = torch.finfo(dtype or W.dtype)
    entries = W.detach().double().abs()
    _, exponent = torch.frexp(entries.clamp(min=info.smallest_normal))
    half_ulp = info.eps / 4 * torch.exp2(exponent.double())
    return torch.linalg.matrix_norm(torch.where(entries == 0, 0.0, half_ulp))


def sized(x: Tensor, size: Tensor) -> Tensor:
    """x >= 0 times its power of two; NaN where the product overflows or underflows float64."""
    found = x * size
    return torch.where((found.isinf() | (found == 0)) & (x > 0), torch.nan, found)


P = ParamSpec("P")
R = TypeVar("R")
DEVICES = ("cpu", "cuda")


def undisturbed(measured: Callable[P, R]) -> Callable[P, R]:
    """The same function without autocast, which would take products in bfloat16 outside of all
    bounds, and without a default device other than the CPU, where the small tensors lie."""

    @wraps(measured)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for device in DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            return measured(*args, **kwargs)

    return alone
