"""A device that refuses what Apple's GPU refuses, on a CPU: float64, decompositions, torch's AdamW
kernel, tensors of two devices in one operation.

A mode sees every call of torch. Tensors that were sent to "mps" are marked, and so is what is
computed of them; their arithmetic is the CPU's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from rankscope.sweep import machine

DEVICE = torch.device("mps")
REFUSED = (
    *("linalg_svd", "linalg_qr", "linalg_eigh", "linalg_cholesky", "linalg_svdvals"),
    "_fused_adamw_",  # which we do not try there
)
PLAIN = ("size", "dim", "stride", "__format__", "_parse_to", "_has_compatible_shallow_copy_type")
MAY_MIX = (
    "copy_",
    "to",
    "__getitem__",
    "__setitem__",
    "__set__",
    "index_put_",
    "type_as",
    "__deepcopy__",
)


def is_there(x: Any) -> bool:
    """Whether it is on that device."""
    return isinstance(x, Tensor) and x.__dict__.get("on_mps", False)


class FakeMPS(TorchFunctionMode):
    """The device, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0  # of operations on the device
        self._new = nn.Parameter.__new__

    def __enter__(self) -> FakeMPS:
        def new(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
            made = self._new(cls, data, requires_grad)  # no call of torch that a mode sees
            made.on_mps = is_there(data)
            return made

        nn.Parameter.__new__ = new  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        nn.Parameter.__new__ = self._new  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = tree_flatten((args, kwargs))[0]
        there = [x for x in given if is_there(x)]
        if func == Tensor.device.__get__:
            return DEVICE if there else func(*args)
        if func is torch.device or func == Tensor.dtype.__get__ or name in PLAIN:
            return func(*args, **kwargs)
        sent = any(map(_names_it, given))
        back = name == "cpu" or (name in ("to", "empty", "zeros") and "cpu" in map(str, given))
        if there and not sent and not back:
            _check(name, given)
        if sent:
            args = tuple(torch.device("cpu") if _names_it(x) else x for x in args)
            kwargs = {k: torch.device("cpu") if _names_it(x) else x for k, x in kwargs.items()}
        found = func(*args, **kwargs)
        if name == "__set__":  # p.data = value
            args[0].on_mps = is_there(args[1])
        elif back and is_there(found):
            return found.clone()  # the tensor itself stays where it is
        elif sent or (there and not back):
            self.calls += 1
            if sent and any(found is x for x in given if not is_there(x)):
                found = found.view_as(found)  # likewise
            for x in tree_flatten(found)[0]:
                _mark(x)
        return found


@contextlib.contextmanager
def apple_gpu() -> Iterator[FakeMPS]:
    """A machine that has the device."""
    with mock.patch.object(machine, "has_mps", return_value=True), FakeMPS() as fake:
        yield fake


def _names_it(x: Any) -> bool:
    return isinstance(x, torch.device | str) and str(x).startswith("mps")


def _check(name: str, given: list[Any]) -> None:
    if name in REFUSED:
        raise NotImplementedError(f"{name} is not implemented for MPS")
    elsewhere = [x for x in given if isinstance(x, Tensor) and x.ndim and not is_there(x)]
    if elsewhere and name not in MAY_MIX:
        raise RuntimeError(f"{name}: expected all tensors on one device; found mps and cpu")


def _mark(x: Any) -> None:
    if isinstance(x, Tensor):
        if x.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        x.on_mps = True  # type: ignore[attr-defined]
