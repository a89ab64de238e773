"""Stable rank while training: a callback for the Hugging Face Trainer."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankscope.measurement.early_warning import checked_levels, first_process_says
from rankscope.measurement.measure import pattern, tabulated
from rankscope.measurement.probe import Reference, nothing_measured, opened
from rankscope.measurement.row import Row, compared
from rankscope.measurement.table import median_drift, middle
from rankscope.weights import Matrix
from rankscope.weights.base_model import BaseModel
from rankscope.weights.in_memory import (
    adapted_layers,
    adapter_matrices,
    full_matrices,
    state_of,
    trained_weights,
)
from rankscope.weights.sharded import innermost
from rankscope.weights.tensors import one_line

logger = logging.getLogger(__name__)

# "W+dW" becomes "W_plus_dW" in logged names: MLflow takes no "+".
LOGGED = {"dW": "dW", "W+dW": "W_plus_dW"}
QUANTITIES = ("stable_rank", "spectral_norm", "frobenius_norm")
# Errors of a measurement that must not end a training.
FAILURES = (ValueError, RuntimeError, OSError, MemoryError, LookupError, AttributeError, TypeError)


class StableRankCallback(TrainerCallback):
    """Logs the stable ranks of dW and W + dW beside the loss, to whatever ``report_to`` names.

        >>> StableRankCallback(every=50).attach(trainer)  # doctest: +SKIP

    Every ``every`` optimiser steps the Trainer is asked to log, and these are added to what it
    logs: medians over layers of ``stable_rank/dW``, ``stable_rank/W_plus_dW``,
    ``spectral_norm/...``, ``frobenius_norm/...``, ``stable_rank/drift`` = sr(W + dW) / sr(W) - 1
    (by the median of its logarithm) and ``stable_rank/rho`` = sigma_1(dW) / sigma_1(W). What is
    undefined (dW = 0) is left out. Layers whose bounds are wider than ``rtol`` are left out of the
    medians, counted in ``stable_rank/unmet``, and NaN where each layer is logged.

    ``attach(trainer)`` puts the callback before the Trainer's reporters (TensorBoard, W&B, ...).
    Given as ``Trainer(callbacks=[...])`` it comes after them: its values are printed and are in
    ``trainer.state.log_history``, but they are not reported.

    A PEFT model is measured from its adapted layers. Full fine-tuning is measured against
    ``reference``, the pretrained weights. Without it the callback copies the trained weight
    matrices to CPU memory when it is given to the Trainer, before ``resume_from_checkpoint`` loads
    others, and keeps them as long as it lives. If it is added to a Trainer that resumes, it reads
    them again from where ``from_pretrained`` had them.

    A model sharded by FSDP or ZeRO-3 is gathered one layer at a time, by all processes, and
    measured by the first. What cannot be measured is said in one line, and training goes on.

    Args:
        every: optimiser steps between two measurements.
        layers: a regular expression; only layers whose name it finds are measured.
        per_layer: log each layer's values as well: ``stable_rank/dW/<layer>``, ...
        widths: log the relative width of the widest bounds, ``stable_rank/width/dW``, ..., and with
            ``per_layer`` each layer's.
        rtol: relative width of the bounds on the stable rank that is aimed at.
        reference: pretrained weights for full fine-tuning: a state dictionary, a path or a hub id.
        warn: levels of the median ``"drift"`` (its absolute value) or ``"rho"``, such as
            ``{"drift": 0.15}``. The first measurement above one is logged as a warning, once in a
            training. docs/results/early-warning has levels with their false alarms and leads.
        stop: end the training at that step, on every process, as an early-stopping callback does.
    """

    def __init__(
        self,
        every: int = 50,
        *,
        layers: str | None = None,
        per_layer: bool = False,
        widths: bool = False,
        rtol: float = 1e-2,
        reference: Reference | None = None,
        warn: Mapping[str, float] | None = None,
        stop: bool = False,
    ) -> None:
        if every < 1:
            raise ValueError(f"StableRankCallback: expected every >= 1 steps; found {every}.")
        self.levels, self.stop = checked_levels(warn or {}, stop), stop
        self.every, self.per_layer, self.widths, self.rtol = every, per_layer, widths, rtol
        self.chosen = pattern(layers)
        self._given = reference is not None
        self._reference: BaseModel | None = None if reference is None else opened(reference)
        self._kept_of: weakref.ref[nn.Module] | None = None
        self._attached = False
        self._W: tuple[Row, ...] = ()
        self._values: dict[str, float] = {}
        self._said: set[str] = set()
        self._warned: set[str] = set()

    def attach(self, trainer: Any) -> Self:
        """Puts the callback first in the Trainer's list; the weights of its model become the
        reference."""
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(other for other in callbacks if other is not self)]
        self._attached = True
        self._keep(trainer.model, trainer.state)
        return self

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """In full fine-tuning, copies the pretrained weights before a checkpoint may be loaded."""
        self._keep(kwargs.get("model"), state)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures W."""
        self._W, self._values = (), {}
        self._warned = set()
        if getattr(args, "report_to", None) and not self._attached:
            reporters = " and ".join(args.report_to)
            self._say(
                state,
                f"its values do not reach {reporters}; before training: callback.attach(trainer)",
            )
        model = kwargs["model"]
        if not adapted_layers(model):
            self._find_reference(model, state)
        self._W = self._measure(model, state, "W")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures, and asks the Trainer to log, every ``every`` steps."""
        if state.global_step % self.every:
            return
        control.should_log = True  # on every process: the Trainer gathers the loss from all of them
        rows = self._measure(kwargs["model"], state, "dW", "W+dW")
        self._values = self._summarised(compared([*self._W, *rows])) if rows else {}
        if unmet := len({row.layer for row in rows if not row.met}):
            self._say(
                state,
                f"the bounds of {unmet} layers are wider than rtol = {self.rtol:g}: they are "
                "left out of the medians, and NaN with per_layer; a larger rtol takes them in",
            )
        above = self._warn(state)
        if self.stop and first_process_says(above, args.device):
            control.should_training_stop = True

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

    def _warn(self, state: TrainerState) -> bool:
        """Logs each level once, when it is passed. Returns whether one was passed now."""
        above = False
        for quantity, level in self.levels.items():
            value = self._values.get(f"stable_rank/{quantity}", math.nan)
            if abs(value) > level and quantity not in self._warned:
                above = True
                self._warned.add(quantity)
                end = "; training stops here" if self.stop else ""
                logger.warning(
                    "StableRankCallback: step %d: the median %s is %.3g, past the level %g%s",
                    state.global_step,
                    quantity,
                    value,
                    level,
                    end,
                )
        return above

    def _keep(self, model: nn.Module | None, state: TrainerState) -> None:
        """Copies the weights of a model that is about to be trained from its start."""
        if model is None or self._given or state.global_step or adapted_layers(model):
            return
        if self._kept_of is not None and self._kept_of() is innermost(model):
            return
        try:
            copies = trained_weights(model, self.chosen, here=state.is_world_process_zero)
        except FAILURES as error:
            self._say(state, one_line(error))
            return
        self._kept_of = weakref.ref(innermost(model))
        self._reference = state_of(copies) if copies else None

    def _find_reference(self, model: nn.Module, state: TrainerState) -> None:
        """The pretrained weights, even if training resumes; None if they are unknown."""
        self._keep(model, state)  # of a model that model_init made after the callback was given
        if self._given or not state.global_step:
            return
        if self._reference is None and state.is_world_process_zero:
            self._reference = _read_again(model)
        updates = self._measure(model, state, "dW")
        if updates and not any(row.frobenius_norm for row in updates):
            self._reference = None  # a checkpoint to resume from, not the pretrained weights
        if self._reference is None:
            self._say(
                state,
                f"training resumes at step {state.global_step}, the pretrained weights are not "
                "known, and "
                "dW is not measured; pass reference=, or give the callback to "
                "Trainer(callbacks=[...])",
            )

    def _measure(self, model: nn.Module, state: TrainerState, *wanted: str) -> tuple[Row, ...]:
        """The rows of the ``wanted`` matrices; none on processes that only take part in
        gathering."""
        here = state.is_world_process_zero
        try:
            if adapted_layers(model):
                reading = adapter_matrices(model, self.chosen, here=here)
            else:
                here = here and self._reference is not None
                reading = full_matrices(model, self._reference, self.chosen, here=here)
            some = (one for one in reading if not isinstance(one, Matrix) or one.matrix in wanted)
            table = tabulated(some, type(model).__name__, None, rtol=self.rtol, energy=False)
        except FAILURES as error:
            self._say(state, one_line(error))
            return ()
        if here and not table.rows:
            self._say(state, nothing_measured(table))
        return table.rows

    def _summarised(self, rows: Sequence[Row]) -> dict[str, float]:
        """The values to log, from the rows of all layers."""
        unmet = {row.layer for row in rows if not row.met}
        met = [row for row in rows if row.layer not in unmet]
        values: dict[str, float] = {"stable_rank/unmet": len(unmet)} if unmet else {}
        for matrix, word in LOGGED.items():
            for quantity in QUANTITIES:
                values[f"{quantity}/{word}"] = middle(
                    [getattr(r, quantity) for r in met if r.matrix == matrix]
                )
            if self.widths:
                widths = [
                    row.width for row in rows if row.matrix == matrix and row.width is not None
                ]
                values[f"stable_rank/width/{word}"] = max(widths, default=math.nan)
        values["stable_rank/drift"] = median_drift(met)
        values["stable_rank/rho"] = middle([row.rho for row in met if row.matrix == "W+dW"])
        values = {name: value for name, value in values.items() if value == value}
        return values | (self._per_layer(rows, unmet) if self.per_layer else {})

    def _per_layer(self, rows: Sequence[Row], unmet: set[str]) -> dict[str, float]:
        values: dict[str, float | None] = {}
        for row in rows:
            if row.matrix in LOGGED:
                word = LOGGED[row.matrix]
                values[f"stable_rank/{word}/{row.layer}"] = row.stable_rank
                if self.widths:
                    values[f"stable_rank/width/{word}/{row.layer}"] = row.width
            if row.matrix == "W+dW":
                values[f"stable_rank/drift/{row.layer}"] = row.drift
                values[f"stable_rank/rho/{row.layer}"] = row.rho
        for name in values:
            if "/width/" not in name and name.split("/", 2)[2] in unmet:
                values[name] = math.nan
        return {name: value for name, value in values.items() if value is not None}

    def _say(self, state: TrainerState, line: str) -> None:
        """Prints a line once, on the first process."""
        if state.is_world_process_zero and line not in self._said:
            self._said.add(line)
            logger.warning("StableRankCallback: %s", line)


def _read_again(model: nn.Module) -> BaseModel | None:
    """The weights that ``from_pretrained`` loaded; None if they cannot be read again."""
    source = getattr(getattr(innermost(model), "config", None), "_name_or_path", "")
    try:
        return opened(source) if source else None
    except FAILURES:
        return None
