"""One base model and one task: trained updates are opened, edited, measured and evaluated on it.

Equal variants are evaluated once: an edit that changes nothing is the trained update, and edits
that remove the whole update are the base, with different heads.

Letters: K variants in a pack, N validation rows, F training rows of a refitted head.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rankscope.evaluation.evaluate import Evaluation
from rankscope.evaluation.matrices import Matrices
from rankscope.evaluation.pack import Edited, together
from rankscope.evaluation.text import learnt_in_rows
from rankscope.evaluation.trained import Trained, read_trained
from rankscope.interventions.forgetting import Forgetting
from rankscope.interventions.settings import ALL, Settings, Variant
from rankscope.interventions.variants import Edits, Measure
from rankscope.study.study_file import Study
from rankscope.study.tasks import Task, check_task
from rankscope.study.trial import ALL_LINEAR
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.data import Encoded
from rankscope.train.loading import load_model

PACK = 8  # most variants evaluated together on a CPU, as in training
BASE = ("scale", 0.0, ALL)  # the edit that removes the update


def inputs_of(base: str, task: str, data: str, study: Study | None = None) -> StudyInputs:
    """The inputs of a study of one trial, for an adapter or fine-tune that no study trained.

    `study`: where a task of the user's own, ``[task.NAME]``, stands. Its rows are cut and batched
    as the study says; relative paths in it are relative to it.
    """
    # the adapter names its own layers; of those that have no default this asks for none
    fixed: dict[str, Any] = {"target_modules": ALL_LINEAR}
    more: dict[str, Any] = {"folder": Path.cwd()}
    if study is not None and task in study.task:
        base = str(Path(base).absolute()) if Path(base).exists() else base
        more = {"folder": study.folder, "task": {task: study.task[task]}}
        fixed |= study.fixed.model_dump(exclude_unset=True, exclude={"target_modules"})
    else:
        fixed |= {"data": data}
        try:
            check_task(task)
        except ValueError as error:
            raise ValueError(f"{error}. The file of that table: --study FILE") from None
    asked: dict[str, Any] = {
        "name": "intervene",
        "scientific": {"model": base, "task": task, "rank": 1},
        "nuisance": {"learning_rate": 1e-3},
        "fixed": fixed,
    }
    return StudyInputs(Study(**asked, **more))


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
        self._say_once = functools.cache(say)
        self.model = load_model(model, task)
        self.matrices = Matrices(self.model)
        self.validation = validation.first(settings.rows)
        has_head = settings.refit and not task.is_language  # of its own, that could be refitted
        self.refit = train.drawn(settings.refit) if has_head else None
        self._evaluations: dict[tuple[str, ...], Evaluation] = {}
        self._measures: dict[tuple[str, ...], Measure] = {}
        self._base_sd: float | None = None
        self.forgetting: Forgetting | None = None

    @property
    def labels(self) -> Tensor:
        """Labels of the validation rows (N,); for a language model the number of tokens that each
        row trains."""
        if self.task.is_language:
            return learnt_in_rows(self.validation)
        return self.validation.labels

    def open(self, source: str | Path, name: str = "") -> Trained:
        """See ``read_trained``."""
        found = read_trained(source, self.model, self.task, base_path=self.path, name=name)
        if kept := found.unedited:
            self._say_once(
                f"{len(kept)} weights stay as trained in every edit, such as {kept[0]}: "
                "they are no linear layers"
            )
        return found

    def chosen(self, trained: Trained) -> list[str]:
        """Its layers that the settings allow to edit. ``ValueError`` if there are none."""
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
        base = {layer: self.matrices[layer] for layer in trained.updates}
        return Edits(trained.updates, base, chosen=self.chosen(trained), name=trained.name)

    def measure(self, layers: tuple[str, ...]) -> Measure:
        """Measures drift over these layers; the base's part is computed once."""
        if layers not in self._measures:
            self._measures[layers] = Measure({layer: self.matrices[layer] for layer in layers})
        return self._measures[layers]

    def tables(
        self,
        work: Sequence[tuple[Trained, Sequence[Variant]]],
        *,
        progress: Callable[[int], None] = lambda variants: None,
    ) -> list[pd.DataFrame]:
        """One table for each trained update, one line for each of its variants. Their variants are
        packed together."""
        found: list[dict[int, dict[str, Any]]] = [{} for _ in work]
        own: dict[int, dict[str, Any]] = {}  # of unedited updates
        copies: list[_Job] = []
        for jobs in self._packs(work):
            evaluation = self._evaluation(tuple(jobs[0].edited.updates))
            results = evaluation([job.edited for job in jobs])
            for job, result in zip(jobs, results, strict=True):
                values = {**vars(result), **self._forgotten(job.edited)}
                found[job.place][job.number] = {**job.line, **values}
                if job.is_own:
                    own[job.place] = values
            copies += [copy for job in jobs for copy in job.copies]
            progress(sum(1 + len(job.copies) for job in jobs))
        for copy in copies:
            found[copy.place][copy.number] = {**copy.line, **own[copy.place]}
        return [
            pd.DataFrame([lines[number] for number in sorted(lines)]).assign(
                base_feature_sd=self._base_sd
            )
            for lines in found
        ]

    def _forgotten(self, edited: Edited) -> dict[str, float]:
        """The language loss of this variant and of the base, if requested."""
        if self.forgetting is None:
            return {}
        return {"lm_loss": self.forgetting(edited), "base_lm_loss": self.forgetting.base}

    def _packs(self, work: Sequence[tuple[Trained, Sequence[Variant]]]) -> Iterator[list[_Job]]:
        """Up to K variants that fit one pack: of the same layers, and all of adapters or of one
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
        """The jobs: first the base under each head, then each trained update's edits."""
        opened = [_Opened(self, trained, wanted) for trained, wanted in work]
        if self._base_sd is None and work:
            self._base_sd = self._of_base(work[0][0])
        for of_base in (True, False):
            for place, one in enumerate(opened):
                yield from one.jobs(place, of_base=of_base)

    def _of_base(self, trained: Trained) -> float | None:
        """Standard deviation of the pretrained model's own pooled features."""
        evaluation = self._evaluation(tuple(trained.updates))
        return evaluation([Edited(Trained("base", {}, trained.head), {})])[0].feature_sd

    def _evaluation(self, layers: tuple[str, ...]) -> Evaluation:
        if layers not in self._evaluations:
            self._evaluations.clear()  # one at a time, to save memory
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


@dataclass
class _Job:
    place: int  # of its trained update
    number: int  # of its variant
    edited: Edited
    line: Mapping[str, Any]
    is_own: bool = False
    copies: list[_Job] = field(default_factory=list)  # edits that change nothing: equal to it


class _Opened:
    """A trained update and its variants. Its decompositions are kept with it."""

    def __init__(self, bench: Bench, trained: Trained, wanted: Sequence[Variant]) -> None:
        self.trained, self.metric = trained, bench.task.metric
        self.edits, chosen = bench.edits(trained), bench.chosen(trained)
        layers = [n for n in chosen if bench.measured is None or n in bench.measured] or chosen
        self.measure = bench.measure(tuple(layers))
        self.leaves_base = not trained.rest and set(chosen) == set(trained.updates)
        self.wanted = [(i, v) for i, v in enumerate(wanted) if self.edits.possible(v)]

    def jobs(self, place: int, *, of_base: bool) -> Iterator[_Job]:
        """``of_base``: those that leave no update in any layer, or the others."""
        own = []
        for number, variant in self.wanted:
            bare = (variant.family, variant.level, variant.scope) == BASE and self.leaves_base
            if bare != of_base:
                continue
            updates = self.edits.make(variant)
            line = {**vars(variant), **vars(self.measure(updates)), "metric": self.metric}
            job = _Job(place, number, Edited(self.trained, updates), line)
            job.is_own = self.edits.is_own(variant)
            if job.is_own:
                own.append(job)
            else:
                yield job
        if own:
            own[0].copies = own[1:]
            yield own[0]


def _together(one: Edited, other: Edited) -> bool:
    return together(one, other) and tuple(one.updates) == tuple(other.updates)
