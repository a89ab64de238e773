"""Stable rank while training: a callback for the Hugging Face Trainer, and one function for any loop."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from rankscope.measurement.row import Row, measured
from rankscope.measurement.table import Table, drift, middle
from rankscope.weights import Matrix, Skipped
from rankscope.weights.in_memory import adapted_layers, adapter_matrices, full_matrices

# "W+dW" becomes "W_plus_dW" in logged names: MLflow takes no "+".
LOGGED = {"dW": "dW", "W+dW": "W_plus_dW"}
QUANTITIES = ("stable_rank", "spectral_norm", "frobenius_norm")


def probe(
    model: nn.Module,
    reference: Mapping[str, Tensor] | None = None,
    *,
    layers: str | None = None,
    rtol: float = 1e-3,
    certify: bool = False,
) -> Table:
    """The stable ranks of a model in memory, as they are now; for any training loop.

    A PEFT model is measured from its adapted layers, whatever the method. Any other model needs ``reference``, the pretrained state
    dictionary (``{name: tensor.clone() ...}``, on any device), and is measured as dW = W_now - W_reference.
    ``layers``, ``rtol``, ``certify`` and the Table are those of ``measure``. Raises ``ValueError`` where
    there is nothing to compare with.
    """
    chosen = None if layers is None else re.compile(layers)
    if adapted_layers(model):
        reading = adapter_matrices(model, chosen)
    elif reference is not None:
        reading = full_matrices(model, reference, chosen)
    else:
        raise ValueError(
            "probe: expected a model with PEFT layers, or reference= with the pretrained weights; "
            f"found {type(model).__name__} alone. Keep them before training: "
            "reference = {k: v.clone() for k, v in model.state_dict().items()}"
        )
    rows: list[Row] = []
    skipped: list[Skipped] = []
    spectra: dict[str, tuple[int, ...]] = {}
    for one in reading:
        if isinstance(one, Matrix):
            rows.append(measured(one, rtol=rtol, certify=certify, spectra=spectra))
        else:
            skipped.append(one)
    return Table(
        type(model).__name__, None if reference is None else "reference", tuple(rows), tuple(skipped), spectra
    )


class StableRankCallback(TrainerCallback):
    """Logs sr(dW), sr(W + dW), their drift and their norms beside the loss, to whatever ``report_to`` names.

    Every ``every`` optimiser steps the Trainer is asked to log, and these are added to what it logs: medians
    over layers of ``stable_rank/dW``, ``stable_rank/W_plus_dW``, ``spectral_norm/...``,
    ``frobenius_norm/...``, and ``stable_rank/drift`` = sr(W + dW) / sr(W) - 1. What is undefined (dW = 0) is
    left out. With ``per_layer`` each layer's stable ranks follow, as ``stable_rank/dW/<layer>``. ``layers``
    is a regular expression.

    A PEFT model is measured from its adapted layers. In full fine-tuning the callback keeps a copy of the
    trained weight matrices in CPU memory when training begins.
    """

    def __init__(
        self, every: int = 50, *, layers: str | None = None, per_layer: bool = False, rtol: float = 1e-2
    ) -> None:
        if every < 1:
            raise ValueError(f"StableRankCallback: expected every >= 1 steps; found {every}.")
        self.every, self.per_layer, self.rtol = every, per_layer, rtol
        self.chosen = None if layers is None else re.compile(layers)
        self._reference: dict[str, Tensor] | None = None
        self._W: dict[str, float | None] = {}
        self._values: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures W; in full fine-tuning keeps a copy of it."""
        _move_to_front(self)
        self._W, self._values, self._reference = {}, {}, None
        if not state.is_world_process_zero:
            return
        model = kwargs["model"]
        if not adapted_layers(model):
            self._reference = {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and parameter.ndim > 1
            }
        self._W = {row.layer: row.stable_rank for row in self._rows(model, "W")}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures, and asks the Trainer to log, every ``every`` steps."""
        if state.global_step % self.every:
            return
        control.should_log = True  # on every process: the Trainer gathers the loss from all of them
        if state.is_world_process_zero:
            self._values = self._medians(self._rows(kwargs["model"], "dW", "W+dW"))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds what was measured to the Trainer's own log, once."""
        logs = kwargs["logs"]
        if not self._values or "loss" not in logs:
            return
        logs.update(self._values)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(self._values)
        self._values = {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the copy of the pretrained weights back."""
        self._reference = None

    def _rows(self, model: nn.Module, *wanted: str) -> list[Row]:
        if self._reference is None:
            reading = adapter_matrices(model, self.chosen)
        else:
            reading = full_matrices(model, self._reference, self.chosen)
        return [
            measured(one, rtol=self.rtol, certify=False)
            for one in reading
            if isinstance(one, Matrix) and one.matrix in wanted
        ]

    def _medians(self, rows: list[Row]) -> dict[str, float]:
        values: dict[str, float | None] = {}
        for matrix, word in LOGGED.items():
            these = [row for row in rows if row.matrix == matrix]
            for quantity in QUANTITIES:
                values[f"{quantity}/{word}"] = middle([getattr(row, quantity) for row in these])
            if self.per_layer:
                values |= {f"stable_rank/{word}/{row.layer}": row.stable_rank for row in these}
        values["stable_rank/drift"] = drift(rows, self._W)
        return {name: value for name, value in values.items() if value is not None and value == value}


def _move_to_front(callback: TrainerCallback) -> None:
    """Lets ``callback`` hear of a log before the reporters do, so that they report what it adds.

    The Trainer calls its callbacks in order, its own reporters first, and hands a callback no way to the
    list. The list is found through the caller; where there is none, what is logged still gets into the
    Trainer's ``log_history``.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, CallbackHandler) and callback in owner.callbacks:
            # Safe while the list is walked: what comes after the callback keeps its place.
            owner.callbacks.remove(callback)
            owner.callbacks.insert(0, callback)
            return
        frame = frame.f_back
