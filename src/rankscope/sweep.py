"""The main job: a study -> its inputs, checked -> trials trained into a store -> the comparison of methods."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

import rankscope
from rankscope import lab
from rankscope.compare import compare
from rankscope.progress import bar
from rankscope.study.cost import Rows, Shape
from rankscope.study.execution import execute, missing
from rankscope.study.folder import TrialFolder
from rankscope.study.plan import Study, Trial
from rankscope.study.store import Store
from rankscope.study.tasks import task_named
from rankscope.train.data import Encoded, encode, read_split
from rankscope.train.data import fingerprint as data_fingerprint
from rankscope.train.loop import train_pack
from rankscope.train.model import fingerprint as model_fingerprint
from rankscope.train.model import largest_rank, load_tokenizer, sites, skeleton, weight_of

PACK_SIZE = 8  # measured on two CPU cores: larger packs leave the caches (docs/log.md)


def run(study: Study, store: str | Path, *, quiet: bool = False) -> Store:
    """Trains what the store lacks of this study, then compares LoRA with full fine-tuning. Safe to stop and call again.

    Raises ``ValueError`` or ``OSError``, one line, before anything is written, when the study can't be run as it is.
    Failed trials are recorded in the store (``rankscope status``) and do not stop the others.
    """
    inputs = Inputs(study, quiet=quiet)
    trials = inputs.trials
    opened = Store.create(store, study, largest_rank=inputs.largest_rank, fingerprints=inputs.fingerprints)
    todo = missing(opened, trials)
    steps = sum(inputs.steps(trial) for trial in todo)
    with bar(f"training {len(todo)} of {len(trials)} trials", total=steps, quiet=quiet) as advance:
        outcome = execute(
            opened, todo, inputs.train_pack, pack_size=PACK_SIZE, provenance=provenance(), progress=advance
        )
    if outcome.trained or opened.comparison().empty:
        with bar("comparing LoRA with full fine-tuning", total=None, quiet=quiet) as advance:
            compare(opened, base_of=inputs.model_path, progress=advance)
    return opened


class Inputs:
    """Everything that a study needs, read and checked once: models, data, trials. Writes nothing."""

    def __init__(self, study: Study, *, quiet: bool = True) -> None:
        self.study = study
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tasks = {name: task_named(name) for name in study.scientific.task}
        models = {name: self.model_path(name) for name in study.scientific.model}
        with bar("reading models and data", total=len(models) + len(self.tasks), quiet=quiet) as advance:
            self._skeletons, self._tokenizers = {}, {}
            for name, path in models.items():
                self._skeletons[name] = skeleton(path, next(iter(self.tasks.values())))
                self._tokenizers[name] = load_tokenizer(path)
                advance(1)
            self._splits = {}
            for name in self.tasks:
                self._splits[name] = (self._read(name, "train"), self._read(name, "validation"))
                advance(1)
        self._encoded: dict[tuple[str, str, int], tuple[Encoded, Encoded]] = {}

    @cached_property
    def largest_rank(self) -> dict[str, int]:
        """What "d" stands for, per model."""
        targets = self.study.fixed.target_modules
        return {name: largest_rank(model, targets) for name, model in self._skeletons.items()}

    @cached_property
    def trials(self) -> list[Trial]:
        return self.study.trials(self.largest_rank)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What tells these inputs from others under the same name (``Store.create``)."""
        data = {f"data/{name}": data_fingerprint(*splits) for name, splits in self._splits.items()}
        return data | {f"model/{name}": model_fingerprint(self.model_path(name)) for name in self._skeletons}

    def model_path(self, name: str) -> str:
        """What ``from_pretrained`` takes: "lab" is ours, a folder may be relative to the study file, else a hub id."""
        if name == "lab":
            return str(lab.ENCODER)
        local = self.study.folder / name
        if local.is_dir():
            return str(local)
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # no hub id looks like this
            raise ValueError(
                f"model {name!r}: expected a folder, or a hub id such as org/name; found no folder {local}"
            )
        return name

    def shape(self, trial: Trial) -> Shape:
        model = self._skeletons[trial.model]
        matrices = [
            p.numel()
            for name, p in model.base_model.named_parameters()
            if p.ndim == 2 and "embed" not in name
        ]
        config = model.config
        return Shape(
            matrices=sum(matrices),
            all=sum(p.numel() for p in model.parameters()),
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            adapted=tuple(
                (m, n) for m, n in (weight_of(s).shape for s in sites(model, trial.target_modules).values())
            ),
        )

    def rows(self, trial: Trial) -> Rows:
        train, validation = self.encoded(trial)
        return Rows(len(train), len(validation), float(train.lengths.double().mean()))

    def steps(self, trial: Trial) -> int:
        return trial.total_steps(len(self._splits[trial.task][0]))

    def encoded(self, trial: Trial) -> tuple[Encoded, Encoded]:
        """The tokens of that trial's task for its model, made on first use."""
        key = (trial.model, trial.task, trial.max_length)
        if key not in self._encoded:
            train, validation = self._splits[trial.task]
            task, tokenizer = self.tasks[trial.task], self._tokenizers[trial.model]
            longest = (
                self._skeletons[trial.model].config.max_position_embeddings - 2
            )  # RoBERTa keeps two for padding
            length = min(trial.max_length, longest)
            self._encoded[key] = (
                encode(train, task, tokenizer, max_length=length),
                encode(validation, task, tokenizer, max_length=length),
            )
        return self._encoded[key]

    def train_pack(
        self, trials: Sequence[Trial], folders: Sequence[TrialFolder], progress: Callable[[int], None]
    ) -> None:
        """What ``study.execution`` calls for every pack."""
        train, validation = self.encoded(trials[0])
        train_pack(
            trials,
            folders,
            progress,
            model=self.model_path(trials[0].model),
            task=self.tasks[trials[0].task],
            train=train,
            validation=validation,
            device=self.device,
        )

    def _read(self, name: str, split: str) -> pd.DataFrame:
        fixed = self.study.fixed
        rows = fixed.train_rows if split == "train" else fixed.validation_rows
        if fixed.data == "lab":
            from rankscope.lab.tasks import rows as lab_rows

            if name not in lab.TASKS:
                raise ValueError(
                    f'data = "lab": expected one of its tasks, {", ".join(lab.TASKS)}; found {name!r}'
                )
            return pd.DataFrame(lab_rows(name, split)[:rows])
        data = fixed.data if fixed.data == "hub" else str(self.study.folder / fixed.data)
        if data == "hub" and name in lab.TASKS:
            raise ValueError(f'task {name!r}: expected data = "lab" or a folder; found data = "hub"')
        return read_split(data, self.tasks[name], split, rows=rows)


def provenance() -> dict[str, Any]:
    """Versions and machine, as trial.json keeps them."""
    import peft  # slow to import, and only its version is wanted

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {
            "rankscope": rankscope.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads(), "gpu": gpu},
    }
