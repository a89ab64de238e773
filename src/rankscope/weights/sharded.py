"""Models as trainers wrap them: names without wrappers, and sharded parameters gathered one layer
at a time.

FSDP2 holds DTensors, FSDP1 flat parameters, DeepSpeed ZeRO-3 empty tensors with a recorded
shape. Gathering is collective: every process asks for the same layers in the same order.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

# The names that torch.compile, FSDP1 and activation checkpointing give to the module they wrap.
INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
WRAPPERS = re.compile(rf"(^|\.)({'|'.join(INNER)})(?=\.|$)")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DataParallel, DistributedDataParallel and DeepSpeed's engine.

    FSDP1's outermost wrapper is kept, since it gathers the parameters.
    """
    while True:
        if "_orig_mod" in model._modules:
            inner = model._modules["_orig_mod"]
        elif isinstance(model, (nn.DataParallel, DistributedDataParallel)) or _is_engine(model):
            inner = model._modules["module"]
        else:
            return model
        assert inner is not None
        model = inner


def innermost(model: nn.Module) -> nn.Module:
    """The user's own model, out of FSDP1's outermost wrapper as well."""
    model = unwrapped(model)
    return innermost(model.module) if isinstance(model, FSDP) else model


def is_wrapper(module: nn.Module) -> bool:
    """Whether the module wraps another one and forwards its attributes."""
    return any(name in module._modules for name in INNER)


def plain_name(name: str) -> str:
    """The name of a module or a parameter without the wrappers along its path."""
    return WRAPPERS.sub("", name).removeprefix(".")


class Shards:
    """A model's parameters, sharded or not, and how to gather them.

    Raises ``ValueError`` if DeepSpeed has partitioned them and cannot be imported.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        self.model = model
        self.units = {name: part for name, part in model.named_modules() if isinstance(part, FSDP)}
        self.mesh = next((p.device_mesh for p in parameters if isinstance(p, DTensor)), None)
        self.partitioned = any(_is_partitioned(parameter) for parameter in parameters)
        if self.partitioned:
            _deepspeed()
        self._set_up = False

    @property
    def ranks(self) -> list[int]:
        """The processes that take part in gathering; empty where nothing is sharded."""
        if self.mesh is not None:
            return [int(rank) for rank in self.mesh.mesh.flatten()]
        if self.units:
            return dist.get_process_group_ranks(next(iter(self.units.values())).process_group)
        everyone = self.partitioned and dist.is_initialized()
        return list(range(dist.get_world_size())) if everyone else []

    @contextmanager
    def whole(self, name: str, module: nn.Module) -> Iterator[None]:
        """Gathers the parameters of ``module``, which the model calls ``name``, within this
        context."""
        self._find_roots()
        around = self._around(name)
        units = [unit for path, unit in self.units.items() if path.startswith(f"{name}.")]
        with ExitStack() as stack, torch.no_grad():
            for unit in units if around is None else [around, *units]:
                stack.enter_context(_summoned(unit))
            stack.enter_context(_collected(list(module.parameters())))
            stack.enter_context(_replaced(module))
            yield

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter by its plain name. Its full value exists only within ``gathered``."""
        self._find_roots()
        for path, root in self.units.items() or [("", self.model)]:
            seen: set[int] = (
                set()
            )  # one unit at a time: FSDP1's gathered parameters do not outlive the context
            with ExitStack() as stack:
                if isinstance(root, FSDP):
                    stack.enter_context(_summoned(root))
                for name, parameter in _own_parameters(root, path):
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        yield plain_name(name), parameter

    def _find_roots(self) -> None:
        """FSDP1 takes the first unit used as the root: make it an outermost one."""
        for name, unit in () if self._set_up else self.units.items():
            if not name or self._around(name.rpartition(".")[0]) is None:
                with _summoned(unit):
                    pass
        self._set_up = True

    def _around(self, name: str) -> FSDP | None:
        """The innermost FSDP1 unit that holds the module ``name``, or is it."""
        paths = [p for p in self.units if p in ("", name) or name.startswith(f"{p}.")]
        return self.units[max(paths, key=len)] if paths else None


@contextmanager
def gathered(parameter: nn.Parameter) -> Iterator[Tensor]:
    """The whole value of one of ``Shards.parameters()``."""
    with torch.no_grad(), _collected([parameter]):
        yield whole_tensor(parameter)


def whole_tensor(tensor: Tensor) -> Tensor:
    """A DTensor as a plain tensor, by a collective call; any other tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    device = tensor.device_mesh.device_type
    # offloaded: load it
    there: Any = tensor if tensor.device.type == device else tensor.to(device)
    return there.full_tensor().detach()


def without_numbers(tensor: Tensor) -> str | None:
    """Why a tensor cannot be measured where it lies; None where it can."""
    if tensor.is_meta:
        return "its numbers are not in memory (device meta)"
    return None if tensor.layout == torch.strided else f"it is {tensor.layout}, no dense matrix"


def reference_tensor(name: str, tensor: Tensor) -> Tensor:
    """The whole tensor of a reference. ``ValueError`` where it has no numbers, or is sparse."""
    if (why := without_numbers(tensor)) is not None:
        raise ValueError(f"reference: expected a dense tensor of numbers for {name}; found: {why}")
    return whole_tensor(tensor)


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The full shape of the parameter, even if DeepSpeed has partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def all_called(ranks: list[int], wait: float) -> bool:
    """Whether every process of ``ranks`` arrived within ``wait`` seconds; all get the same answer.

    Uses the store of the process group, which works even if some processes are elsewhere: a
    collective call would hang.
    """
    assert dist.group.WORLD is not None
    store = dist.group.WORLD.get_group_store()
    place = f"rankscope/{ranks[0]}+{len(ranks)}"  # two pipeline stages may meet at the same time
    deadline = time.monotonic() + wait
    while True:
        meeting = f"{place}/{store.add(place, 0)}"
        joined = store.add(f"{meeting}/joined", 1)
        while not store.check([f"{meeting}/answer"]):
            complete = joined == len(ranks)
            if complete or time.monotonic() > deadline:
                if store.add(f"{meeting}/decided", 1) == 1:  # the first decision holds for all
                    store.set(f"{meeting}/answer", "all" if complete else "missing")
                    store.add(place, 1)
                break
            time.sleep(0.02)
        answer = store.get(f"{meeting}/answer")
        if answer == b"all" or time.monotonic() > deadline:
            return bool(answer == b"all")


def _summoned(unit: FSDP) -> Any:
    return FSDP.summon_full_params(unit, recurse=False, writeback=False)


@contextmanager
def _collected(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gathers DeepSpeed's partitioned parameters on every process, within this context."""
    partitioned = [parameter for parameter in parameters if _is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    with _deepspeed().zero.GatheredParameters(partitioned):
        yield


@contextmanager
def _replaced(module: nn.Module) -> Iterator[None]:
    """Replaces the module's DTensors by plain, full parameters, within this context."""
    held = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and isinstance(parameter, DTensor)
    ]
    try:
        for part, name, parameter in held:
            part._parameters[name] = nn.Parameter(whole_tensor(parameter), parameter.requires_grad)
        yield
    finally:
        for part, name, parameter in held:
            part._parameters[name] = parameter


def _own_parameters(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a module, without those of FSDP1 units inside it."""
    prefix = f"{path}." if path else ""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter
    for name, child in module._modules.items():
        if child is not None and not isinstance(child, FSDP):
            yield from _own_parameters(child, prefix + name)


def _is_partitioned(parameter: Tensor) -> bool:
    return tuple(parameter.shape) != whole_shape(parameter)


def _is_engine(model: nn.Module) -> bool:
    return any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)


def _deepspeed() -> Any:
    try:
        return importlib.import_module("deepspeed")
    except ImportError as error:
        raise ValueError(
            "the model's parameters are partitioned by DeepSpeed ZeRO-3, and deepspeed cannot be "
            f"imported to gather them: {error}"
        ) from error
