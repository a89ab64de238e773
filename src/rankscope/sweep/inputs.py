"""A study's inputs, read and checked once: models, data, trials, and the packs that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from rankscope import lab
from rankscope.console import bar
from rankscope.study.cost import Rows, Shape
from rankscope.study.study_file import Study
from rankscope.study.tasks import Task, check_one_kind, task_named, with_metric
from rankscope.study.trial import Trial
from rankscope.sweep.machine import check_precision, device_type
from rankscope.sweep.sizes import Sizes, model_path
from rankscope.train.data import Encoded, check_parts, encode, read_split
from rankscope.train.data import fingerprint as data_fingerprint
from rankscope.train.data_summary import beyond, summary
from rankscope.train.encoder import is_patchable
from rankscope.train.loading import fingerprint as model_fingerprint
from rankscope.train.loading import load_tokenizer, skeleton
from rankscope.train.model import (
    ATTENTION_INPUTS,
    accepted_inputs,
    check_rank_pattern,
    default_targets,
    drawn_beside_head,
    largest_rank,
    reads_last,
    row_length,
    shape_of,
)
from rankscope.train.packed import BY_ITS_OWN_FORWARD, ONE_AT_A_TIME
from rankscope.train.text_tokens import encode_text, learnt_tokens

_SPLITS = ("train", "validation")
METRIC = "metric"  # the fingerprint of a user's own metric


class StudyInputs(Sizes):
    """A study's inputs. Writes nothing.

    Args:
        workers: their number; None: as many as train fastest here.
        free: memory of one worker, in bytes; None: its share of what is free here now.
        metric: replaces the tasks' own metrics (``study.tasks.with_metric``).
    """

    def __init__(
        self,
        study: Study,
        *,
        workers: int | None = None,
        free: float | None = None,
        metric: Callable[[Any, Any], float] | None = None,
        greater_is_better: bool = True,
        quiet: bool = True,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.training_device = torch.device(device_type())
        super().__init__(study, self.training_device.type, workers=workers, free=free)
        check_precision(study, self.training_device.type)
        models = {name: self.model_path(name) for name in study.models}
        with bar(
            "reading models and data", total=len(models) + len(study.tasks), quiet=quiet
        ) as advance:
            own = {name: self._own(name) for name in study.tasks if name in study.task}
            self.tasks = {n: own[n][0] if n in own else task_named(n) for n in study.tasks}
            self._skeletons, self._tokenizers = {}, {}
            check_one_kind(self.tasks.values())
            if metric is not None:
                self.tasks = {
                    name: with_metric(task, metric, greater_is_better=greater_is_better)
                    for name, task in self.tasks.items()
                }
            largest = max(self.tasks.values(), key=lambda task: task.num_labels)
            for name, path in models.items():
                self._skeletons[name] = skeleton(path, largest)
                self._tokenizers[name] = load_tokenizer(path)
                advance(1)
            self._splits = {}
            for name, task in self.tasks.items():
                train, validation = (
                    own[name][1:] if name in own else map(self._split, [task] * 2, _SPLITS)
                )
                check_parts(task, validation, study.fixed.validation_split)
                self._splits[name] = train, validation
                advance(1)
        self.study = self._with_targets(study)
        for pattern in self.study.rank_patterns:
            check_rank_pattern(list(self._skeletons.values()), self.study.targets, pattern)
        self._encoded: dict[tuple[str, str, int], tuple[Encoded, Encoded]] = {}
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._apart: dict[tuple[Any, ...], str | None] = {}
        self._rows: dict[tuple[str, str, int], Rows] = {}

    def _with_targets(self, study: Study) -> Study:
        """The study with its models' default ``target_modules`` if it names none."""
        parts = (study.scientific, *study.arm)
        if "target_modules" in study.fixed.model_fields_set or all(p.target_modules for p in parts):
            return study
        found = {name: default_targets(model) for name, model in self._skeletons.items()}
        (first, names), *others = found.items()
        for name, different in others:
            if different != names:
                raise ValueError(
                    f"target_modules: expected one list for all models; {first!r} adapts "
                    f"{', '.join(names)} and "
                    f"{name!r} {', '.join(different)}: take a study for each"
                )
        fixed = study.fixed.model_copy(update={"target_modules": names})
        return study.model_copy(update={"fixed": fixed})

    @cached_property
    def largest_rank(self) -> dict[str, int]:
        """What "d" stands for, per model: the same for all lists of ``target_modules``."""
        return {
            name: min(largest_rank(model, targets) for targets in self.study.targets)
            for name, model in self._skeletons.items()
        }

    @cached_property
    def drawn(self) -> dict[str, str]:
        """Per local model: layers that its file lacks; trials train and save them with the head."""
        found = {name: drawn_beside_head(model) for name, model in self._skeletons.items()}
        return {
            name: f"its file lacks {', '.join(layers)}: drawn at random, trained and saved "
            "with the head"
            for name, layers in found.items()
            if layers
        }

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digests that distinguish these inputs from others of the same name (``Store.create``)."""
        data = {
            f"data/{name}": data_fingerprint(
                *splits, classes=self.tasks[name].labels if name in self.study.task else ()
            )
            for name, splits in self._splits.items()
        }
        for task in self.tasks.values():
            if task.function is not None:
                better = "greater" if task.greater_is_better else "lower"
                data[METRIC] = f"{task.metric}, {better} is better"
        return data | {
            f"model/{name}": model_fingerprint(self.model_path(name)) for name in self._skeletons
        }

    def model_path(self, name: str) -> str:
        """See ``model_path``."""
        return model_path(self.study, name)

    def why_apart(self, trial: Trial) -> str | None:
        """Why LoRA trials like this must train one at a time, as far as known before training."""
        key = (
            trial.model, trial.lora_dropout > 0, trial.init_lora_weights, trial.use_dora,
            *trial.target_modules,
        )  # fmt: skip
        if key not in self._apart:
            skeleton, found = self._skeletons[trial.model], None
            # BERT's family with adapters on the attention's inputs is covered by tests, and checked
            # before every pack; in its last block dropouts of other layers would see one token only
            attention = {
                name.rsplit(".", 1)[-1] for name in trial.target_modules
            } <= ATTENTION_INPUTS
            is_tested = trial.lora_dropout == 0 or (attention and not trial.use_dora)
            if not (is_tested and is_patchable(skeleton)):
                from rankscope.train.packable import why_not_packed  # imports PEFT

                found = why_not_packed(skeleton, trial, self.tasks[trial.task])
            self._apart[key] = found
        return self._apart[key]

    def why_slow(self, trial: Trial, device: str) -> str | None:
        """Why LoRA trials of this model gain little or nothing from packs, in one line."""
        if trial.method != "lora":
            return None
        if (reason := self.why_apart(trial)) is not None:
            return f"{ONE_AT_A_TIME}: {reason}"
        packs_fast = device != "cpu" or is_patchable(self._skeletons[trial.model])
        return None if packs_fast else BY_ITS_OWN_FORWARD

    def shape(self, trial: Trial) -> Shape:
        key = (trial.model, *trial.target_modules)
        if key not in self._shapes:
            self._shapes[key] = shape_of(self._skeletons[trial.model], trial.target_modules)
        return self._shapes[key]

    def rows(self, trial: Trial) -> Rows:
        key = (trial.model, trial.task, trial.max_length)
        if key not in self._rows:
            train, validation = self.encoded(trial)
            self._rows[key] = Rows(
                len(train),
                len(validation),
                float(train.lengths.double().mean()),
                int(train.lengths.max()),
                learnt_tokens(train) if self.is_language(trial.task) else 0.0,
            )
        return self._rows[key]

    def mean_tokens(self, trial: Trial, rows: int) -> list[tuple[int, float]]:
        parts = [split.lengths[:rows] for split in self.encoded(trial)]
        return [(len(part), float(part.double().mean())) for part in parts]

    def is_language(self, task: str) -> bool:
        return self.tasks[task].is_language

    @cached_property
    def training_rows(self) -> dict[str, int]:
        return {name: len(train) for name, (train, _) in self._splits.items()}

    def split(self, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The training and the validation rows of a task."""
        return self._splits[task]

    def encoded(self, trial: Trial) -> tuple[Encoded, Encoded]:
        """The trial's data as tokens of its model, made on first use."""
        key = (trial.model, trial.task, trial.max_length)
        if key not in self._encoded:
            train, validation = self._splits[trial.task]
            task, tokenizer = self.tasks[trial.task], self._tokenizers[trial.model]
            model = self._skeletons[trial.model]
            length = row_length(model, trial.max_length)
            how: dict[str, Any] = {"max_length": length, "accepted": accepted_inputs(model)}
            if not task.is_language:
                how["left"] = reads_last(model)
            make = encode_text if task.is_language else encode
            self._encoded[key] = (
                make(train, task, tokenizer, **how),
                make(validation, task, tokenizer, **how),
            )
            self._check_vocabulary(trial.model, self._encoded[key])
        return self._encoded[key]

    def _check_vocabulary(self, name: str, splits: Sequence[Encoded]) -> None:
        try:
            embeddings = self._skeletons[name].get_input_embeddings()
        except NotImplementedError:  # CANINE hashes characters: it has no vocabulary
            return
        if not isinstance(embeddings, torch.nn.Embedding):  # Perceiver returns its latents
            return
        known = embeddings.num_embeddings
        largest = max(int(split.inputs["input_ids"].max()) for split in splits)
        if largest >= known:
            raise ValueError(
                f"model {name!r}: expected a tokenizer of its {known} tokens; found token {largest}"
            )

    @cached_property
    def summaries(self) -> list[str]:
        """The data of each task, in lines (``train.data_summary``)."""
        lines = [
            line for name, task in self.tasks.items() for line in summary(task, *self._splits[name])
        ]
        for trial in {(t.model, t.task, t.max_length): t for t in self.trials}.values():
            limit = f"max_length = {trial.max_length} tokens of {trial.model}"
            lines += beyond(trial.task, *self.encoded(trial), limit)
        return lines

    def _own(self, name: str) -> tuple[Task, pd.DataFrame, pd.DataFrame]:
        """One of the study's own tasks, with its rows, from which its classes are known."""
        from rankscope.train.own_data import read_own_task

        fixed = self.study.fixed
        rows = {"train_rows": fixed.train_rows, "validation_rows": fixed.validation_rows}
        return read_own_task(name, self.study.task[name], self.study.folder, **rows)

    def _split(self, task: Task, split: str) -> pd.DataFrame:
        name, fixed = task.name, self.study.fixed
        rows = fixed.train_rows if split == "train" else fixed.validation_rows
        if fixed.data == "lab":
            from rankscope.lab.tasks import rows as lab_rows

            if name not in lab.TASKS:
                raise ValueError(
                    f'data = "lab": expected one of its tasks, {", ".join(lab.TASKS)}; found '
                    f"{name!r}"
                )
            return pd.DataFrame(lab_rows(name, split)[:rows])
        data = fixed.data if fixed.data == "hub" else str(self.study.folder / fixed.data)
        if data == "hub" and name in lab.TASKS:
            raise ValueError(
                f'task {name!r}: expected data = "lab" or a folder; found data = "hub"'
            )
        return read_split(data, task, split, rows=rows)
