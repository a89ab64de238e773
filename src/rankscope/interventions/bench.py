"""One base model and one task: trained updates are opened, edited, measured and evaluated on it.

Letters: K variants in a pack, N validation rows, F training rows of a refitted head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rankscope.interventions.evaluate import Evaluation
from rankscope.interventions.pack import Edited
from rankscope.interventions.trained import Trained, read_trained
from rankscope.interventions.variants import Edits, Measure, Variant
from rankscope.study.tasks import Task
from rankscope.train.data import Encoded
from rankscope.train.loading import load_model
from rankscope.train.model import weight_of

PACK = 8  # variants evaluated together at most on a CPU, as trials in training


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on beside the edits.

    Attributes:
        rows: validation rows, the first ones.
        refit: training rows for a refitted head, drawn once; 0: no refitted head.
        layers: a regular expression: only layers whose name it finds are edited.
        weights: which of a trial's are edited, "last" or "best".
        precision: of products, "float32" or "bfloat16".
    """

    rows: int = 512
    refit: int = 512
    layers: str | None = None
    weights: str = "last"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, least in (("rows", 2), ("refit", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}: expected a number from {least}; found {value}")
        if self.weights not in ("last", "best"):
            raise ValueError(f'weights: expected "last" or "best"; found {self.weights!r}')
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision: "float32" or "bfloat16"; found {self.precision!r}')
        try:
            re.compile(self.layers or "")
        except re.error as error:
            raise ValueError(f"layers: expected a regular expression; {error}") from None


class Bench:
    """Args:
    model: folder or hub id of the base.
    measured: the layers whose drift is measured, as training measures them; None: all edited ones.
    """

    def __init__(
        self,
        model: str,
        task: Task,
        train: Encoded,
        validation: Encoded,
        settings: Settings,
        *,
        measured: Collection[str] | None = None,
        device: torch.device,
        K: int = PACK,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path, self.task, self.settings, self.measured = model, task, settings, measured
        self.device, self.K, self.say = device, K, say
        self.model = load_model(model, task)
        self.validation = first_rows(validation, settings.rows)
        self.refit = some_rows(train, settings.refit) if settings.refit else None
        self._evaluations: dict[tuple[str, ...], Evaluation] = {}
        self._base_sd: float | None = None

    def open(self, source: str | Path, name: str = "") -> Trained:
        """See ``read_trained``."""
        return read_trained(source, self.model, self.task, base_path=self.path, name=name)

    def chosen(self, trained: Trained) -> list[str]:
        """Its layers that the settings let be edited. ``ValueError`` where there are none."""
        pattern = re.compile(self.settings.layers or "")
        found = [layer for layer in trained.updates if pattern.search(layer)]
        if not found:
            names = ", ".join(list(trained.updates)[:3])
            raise ValueError(
                f"layers = {self.settings.layers!r}: expected it to find a layer; found none in "
                f"{len(trained.updates)}, such as {names}"
            )
        return found

    def edits(self, trained: Trained) -> Edits:
        base = {layer: weight_of(self.model.get_submodule(layer)) for layer in trained.updates}
        return Edits(trained.updates, base, chosen=self.chosen(trained), name=trained.name)

    def tables(
        self,
        work: Sequence[tuple[Trained, Sequence[Variant]]],
        *,
        progress: Callable[[int], None] = lambda variants: None,
    ) -> list[pd.DataFrame]:
        """One table for each trained update, one line for each of its variants. Their variants are
        packed together."""
        found: list[list[dict[str, Any]]] = [[] for _ in work]
        for jobs in self._packs(work):
            evaluation = self._evaluation(tuple(jobs[0].edited.updates))
            results = evaluation([job.edited for job in jobs])
            for job, result in zip(jobs, results, strict=True):
                found[job.place].append({**job.line, **vars(result)})
            progress(len(jobs))
        return [pd.DataFrame(lines).assign(base_feature_sd=self._base_sd) for lines in found]

    def _packs(self, work: Sequence[tuple[Trained, Sequence[Variant]]]) -> Iterator[list[_Job]]:
        """Up to K variants that one pack can hold: of the same layers, and of adapters, or of one
        full fine-tune."""
        held: list[_Job] = []
        for job in self._jobs(work):
            if held and (len(held) == self.K or not _together(held[0].edited, job.edited)):
                yield held
                held = []
            held.append(job)
        if held:
            yield held

    def _jobs(self, work: Sequence[tuple[Trained, Sequence[Variant]]]) -> Iterator[_Job]:
        for place, (trained, wanted) in enumerate(work):
            edits, chosen = self.edits(trained), self.chosen(trained)
            told = [n for n in chosen if self.measured is None or n in self.measured] or chosen
            measure = Measure({layer: edits.base[layer] for layer in told})
            if self._base_sd is None:
                self._base_sd = self._of_base(trained)
            for variant in wanted:
                if edits.possible(variant):
                    updates = edits.make(variant)
                    line = {**vars(variant), **vars(measure(updates)), "metric": self.task.metric}
                    yield _Job(place, Edited(trained, updates), line)

    def _of_base(self, trained: Trained) -> float | None:
        """Standard deviation of the pretrained model's own pooled features."""
        evaluation = self._evaluation(tuple(trained.updates))
        return evaluation([Edited(Trained("base", {}, trained.head), {})])[0].feature_sd

    def _evaluation(self, layers: tuple[str, ...]) -> Evaluation:
        if layers not in self._evaluations:
            self._evaluations.clear()  # one at a time is held in memory
            self._evaluations[layers] = Evaluation(
                lambda: load_model(self.path, self.task),
                layers,
                self.task,
                self.validation,
                refit=self.refit,
                K=self.K,
                device=self.device,
                mixed=self.settings.precision == "bfloat16",
                say=self.say,
            )
        return self._evaluations[layers]


@dataclass(frozen=True)
class _Job:
    place: int  # of its trained update
    edited: Edited
    line: Mapping[str, Any]


def _together(one: Edited, other: Edited) -> bool:
    same = one.trained.rest is other.trained.rest or not (one.trained.rest or other.trained.rest)
    return same and tuple(one.updates) == tuple(other.updates)


def first_rows(split: Encoded, count: int) -> Encoded:
    """The first rows of a split, without those of a second validation split."""
    return _rows(split, torch.arange(min(count, len(split) - split.beside)))


def some_rows(split: Encoded, count: int) -> Encoded:
    """Rows drawn without replacement, always the same; all where there are no more."""
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return _rows(split, drawn[:count].sort().values)


def _rows(split: Encoded, rows: torch.Tensor) -> Encoded:
    inputs = {name: x[rows] for name, x in split.inputs.items()}
    return Encoded(inputs, split.labels[rows], split.lengths[rows], 0, split.left)
