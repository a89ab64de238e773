"""A study's models and data as a plan sees them: shapes, rows, and how trials train. No torch.

``inputs.StudyInputs`` reads them from the models and data, ``remembered.Remembered`` from a cache.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from rankscope import lab
from rankscope.store.store import Store
from rankscope.study.cost import Rows, Shape, adapter_kind, base_memory, memory, operations, widths
from rankscope.study.sections import Budget
from rankscope.study.study_file import Study
from rankscope.study.tasks import has_recipe
from rankscope.study.trial import Trial
from rankscope.sweep.machine import default_workers, free_for_each, room


def model_path(study: Study, name: str) -> str:
    """What ``from_pretrained`` takes: "lab" is ours, a folder may be relative to the study file,
    else a hub id."""
    if name == "lab":
        return str(lab.ENCODER)
    local = study.folder / name
    if local.is_dir():
        return str(local)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # no hub id looks like this
        raise ValueError(
            f"model {name!r}: expected a folder, or a hub id such as org/name; found no folder "
            f"{local}"
        )
    return name


class Sizes(ABC):
    """A study's trials, and what they cost.

    Args:
        study: with its models' default ``target_modules`` if the file names none.
        device_type: what trials train on here, "cpu" or "cuda".
        workers: their number; None: as many as train fastest here.
        free: memory of one worker, in bytes; None: its share of what is free here now.
    """

    def __init__(
        self, study: Study, device_type: str, *, workers: int | None = None, free: float | None
    ) -> None:
        self.study, self.device_type, self.workers, self._free = study, device_type, workers, free
        self._costs: dict[tuple[object, ...], float] = {}

    @cached_property
    @abstractmethod
    def largest_rank(self) -> dict[str, int]:
        """What "d" stands for, per model: the same for all lists of ``target_modules``."""

    @cached_property
    @abstractmethod
    def drawn(self) -> dict[str, str]:
        """Per model: what its file lacks and each trial trains and saves with the head, in
        one line. Local models only."""

    @cached_property
    @abstractmethod
    def summaries(self) -> list[str]:
        """The data of each task, in lines (``train.data_summary``)."""

    @cached_property
    @abstractmethod
    def training_rows(self) -> dict[str, int]:
        """The number of training rows per task."""

    @abstractmethod
    def is_language(self, task: str) -> bool:
        """Whether that task trains a language model."""

    @abstractmethod
    def shape(self, trial: Trial) -> Shape:
        """The sizes of the trial's model."""

    @abstractmethod
    def rows(self, trial: Trial) -> Rows:
        """The sizes of the trial's task."""

    @abstractmethod
    def mean_tokens(self, trial: Trial, rows: int) -> list[tuple[int, float]]:
        """For the first ``rows`` training and validation rows: their number and mean tokens."""

    @abstractmethod
    def why_apart(self, trial: Trial) -> str | None:
        """Why LoRA trials like this must train one at a time, as far as that can be known before
        they train."""

    @abstractmethod
    def why_slow(self, trial: Trial, device: str) -> str | None:
        """Why LoRA trials of this model gain little or nothing from a pack, in one line."""

    @cached_property
    def trials(self) -> list[Trial]:
        return self.study.trials(self.largest_rank)

    @cached_property
    def free(self) -> float:
        """The memory that a worker can rely on, in bytes."""
        return (
            free_for_each(self.workers or default_workers()) if self._free is None else self._free
        )

    def packs(self, store: Store) -> list[list[Trial]]:
        """The packs of a store's study that this worker has room for."""
        found = room(
            self.device_type,
            free=self.free,
            trials=len(self.trials),
            workers=self.workers or default_workers(),
        )
        return store.packs(size=found.most, share=self.share(found.memory, self.device_type))

    def share(self, room: float, device: str) -> Callable[[Trial], float]:
        """The share of ``room`` bytes that a trial takes on a device, without the base that its
        pack shares."""
        known: dict[tuple[object, ...], float] = {}

        def share(trial: Trial) -> float:
            key = (trial.model, trial.task, trial.method, *adapter_kind(trial))
            if trial.method == "lora" and self.why_apart(trial) is not None:
                return math.inf
            if key not in known:
                held = (self.shape(trial), self.rows(trial), widths(trial, device))
                left = room - base_memory(trial, *held)
                known[key] = memory(trial, *held) / left if left > 0 else math.inf
            return known[key]

        return share

    def steps(self, trial: Trial) -> int:
        return trial.total_steps(self.rows(trial).train)

    def cost(self, trial: Trial) -> float:
        """Operations per step, evaluations included; the time left is estimated from it."""
        steps = self.steps(trial)
        key = (trial.model, trial.task, trial.method, steps, *adapter_kind(trial))
        if key not in self._costs:
            self._costs[key] = operations(trial, self.shape(trial), self.rows(trial)) / steps
        return self._costs[key]

    def memory(self, pack: Sequence[Trial]) -> float:
        """The bytes of a pack's tensors on this machine's device."""
        first = pack[0]
        held = (self.shape(first), self.rows(first), widths(first, self.device_type))
        return base_memory(first, *held) + sum(memory(trial, *held) for trial in pack)

    def check_budget(self, store: Store | None) -> None:
        """``ValueError`` if the study names no budget and has no recipe; in a store that has begun,
        budgets stay as they are."""
        begun = None if store is None else store.study
        check_budget(self.study, self.training_rows, begun=begun)


_PROPOSED_BATCH, _PROPOSED_STEPS = 16, 2000


def check_budget(study: Study, rows: Mapping[str, int], *, begun: Study | None = None) -> None:
    """``ValueError`` if a model and task have no recipe and the study does not say how long to
    train: RoBERTa-base's 30 or 60 epochs would be a guess.

    Args:
        rows: training rows per task; the proposed values depend on them.
        begun: the study of an existing store, which keeps its budget.
    """
    if "recipe" in study.fixed.model_fields_set:
        unknown = [task for task in study.tasks if not has_recipe(model="roberta-base", task=task)]
        pairs = itertools.product(study.models, unknown)
    else:
        pairs = itertools.product(study.models, study.tasks)
    old = set(itertools.product(begun.models, begun.tasks)) if begun else set()
    for model, task in pairs:
        if (model, task) in old:
            continue
        own = study.fixed.task.get(task, Budget())
        said = [(own.epochs, own.steps, own.batch_size)]
        said += [(study.fixed.epochs, study.fixed.steps, study.fixed.batch_size)]
        if has_recipe(model=model, task=task) or any(value for part in said for value in part):
            continue
        epochs = min(30, max(3, round(_PROPOSED_STEPS * _PROPOSED_BATCH / rows[task])))
        raise ValueError(
            f"[fixed]: expected how long to train {model} on {task}, which Hu et al. 2021 do "
            "not say; found none of epochs, steps and batch_size. Add for example: "
            f"batch_size = {_PROPOSED_BATCH} and epochs = {epochs}"
            + (
                '; or recipe = "paper", RoBERTa\'s'
                if has_recipe(model="roberta-base", task=task)
                else ""
            )
        )
