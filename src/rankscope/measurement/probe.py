"""Measures a model in memory, at any moment of any training loop, as a table of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType

from torch import Tensor, nn

from rankscope.measurement.measure import pattern, tabulated
from rankscope.measurement.table import Table
from rankscope.weights.base_model import BaseModel, open_base_model
from rankscope.weights.in_memory import adapted_layers, adapter_matrices, full_matrices, state_of
from rankscope.weights.sharded import Shards, all_called, unwrapped, without_numbers

WAIT = 10.0  # seconds that a process waits for the others of a sharded model
Reference = Mapping[str, Tensor] | str | Path


def probe(
    model: nn.Module,
    reference: Reference | None = None,
    *,
    layers: str | None = None,
    rtol: float = 1e-3,
    certify: bool = False,
) -> Table:
    """The current stable ranks of a model in memory, for any training loop.

    A PEFT model is measured from its adapted layers, whatever the method. Any other model needs
    ``reference``, the pretrained weights: a state dictionary (``{name: tensor.clone() ...}``, on
    any device), a path or a hub id; it is measured as dW = W_now - W_reference. ``layers``,
    ``rtol``, ``certify`` and the Table are those of ``measure``.

    Wrappers (torch.compile, DataParallel, DDP, FSDP, activation checkpointing) do not show in the
    layers' names. A sharded model (FSDP, ZeRO-3) is gathered one layer at a time: call ``probe`` on
    every process; each gets the same table.

    Raises ``ValueError``, one line, where there is nothing to compare with, nothing was measured,
    or some process did not call.
    """
    _check(model, reference)
    _expect_all_processes(model)
    chosen = pattern(layers)
    if adapted_layers(model):
        reading = adapter_matrices(model, chosen)
    elif reference is not None:
        reading = full_matrices(model, opened(reference), chosen)
    else:
        raise ValueError(
            "probe: expected a model with PEFT layers, or reference= with the pretrained weights; "
            f"found {type(model).__name__} alone. Keep them before training: "
            "reference = {k: v.clone() for k, v in model.state_dict().items()}"
        )
    base = str(reference) if isinstance(reference, (str, Path)) else reference and "reference"
    table = tabulated(reading, type(model).__name__, base or None, rtol=rtol, certify=certify)
    if not table.rows:
        raise ValueError(f"probe: {nothing_measured(table)}")
    return table


def _check(model: object, reference: object) -> None:
    """``ValueError`` for what is neither a model nor a reference, and where both are one memory."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"probe: expected a model (nn.Module); found {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"probe: expected a model that has been called once; found {name} not initialised"
            )
    if isinstance(reference, (str, Path, NoneType)):
        return
    copied = "{k: v.clone() for k, v in model.state_dict().items()}, kept before training"
    if not isinstance(reference, Mapping) or not any(
        isinstance(one, Tensor) for one in reference.values()
    ):
        raise ValueError(
            f"probe: expected as reference a path or a state dictionary of tensors, {copied}; "
            f"found {type(reference).__name__}"
        )
    for name, parameter in model.named_parameters():
        own = reference.get(name)
        if parameter.requires_grad and isinstance(own, Tensor) and _one_memory(own, parameter):
            raise ValueError(
                f"probe: expected a reference that training leaves as it was; {name} in it is the "
                f"model's own memory: take {copied}"
            )


def _one_memory(one: Tensor, other: Tensor) -> bool:
    """Whether a change of one is a change of the other. Of tensors without memory of their own
    (meta, sparse, DTensors) this is not asked."""
    plain = all(
        type(x) in (Tensor, nn.Parameter) and x.numel() and without_numbers(x) is None
        for x in (one, other)
    )
    return plain and one.data_ptr() == other.data_ptr()


def opened(reference: Reference) -> BaseModel:
    """The pretrained weights, from memory or from files. ``ValueError``, one line, where there are
    none."""
    return open_base_model(reference) if isinstance(reference, (str, Path)) else state_of(reference)


def nothing_measured(table: Table) -> str:
    """Why the table is empty."""
    if not table.skipped:
        return f"expected a model with weight matrices; found {table.source} without any"
    first = table.skipped[0]
    return (
        f"nothing of {table.source} can be measured; the first of {len(table.skipped)} "
        f"reasons: {first.layer}: {first.why}"
    )


def _expect_all_processes(model: nn.Module) -> None:
    ranks = Shards(unwrapped(model)).ranks
    if len(ranks) > 1 and not all_called(ranks, WAIT):
        raise ValueError(
            f"probe: the model is sharded over {len(ranks)} processes, which all have to call "
            "probe; "
            f"some did not within {WAIT:g} s. Call it outside `if rank == 0`"
        )
