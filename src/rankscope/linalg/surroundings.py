"""What a caller may have switched on around a measurement, and what must not reach it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

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
