"""What to run: a study file -> trials -> packs.

Three kinds of parameter, in the words of Google's deep-learning tuning playbook: *scientific* ones are what the
study asks about, *nuisance* ones are tuned away or averaged over, *fixed* ones are the same in every trial.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from rankscope.study.complaints import complaint
from rankscope.study.recipes import Name as Recipes
from rankscope.study.recipes import recipe_for
from rankscope.study.tasks import task_named

Method = Literal["lora", "full"]
Scaling = Literal["alpha/r", "alpha/sqrt(r)", "alpha"]  # the last: s does not depend on r (PEFT: alpha = c r)
Precision = Literal["float32", "bfloat16"]
Rank = Annotated[int, Field(ge=1, strict=True)] | Literal["d"]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError(f"every value once, got {values}")
    return values


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Scientific(_Frozen):
    """What the study asks about; each value is a list, and the trials are their product."""

    model: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
    task: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
    method: Annotated[list[Method], BeforeValidator(_listed), Field(min_length=1)] = ["lora", "full"]
    rank: Annotated[list[Rank], BeforeValidator(_listed)] = [8]
    scaling: Annotated[list[Scaling], BeforeValidator(_listed), Field(min_length=1)] = ["alpha/r"]

    _once = field_validator("model", "task", "method", "rank", "scaling")(_distinct)

    @field_validator("task")
    @classmethod
    def _known(cls, tasks: list[str]) -> list[str]:
        for task in tasks:
            task_named(task)
        return tasks

    @model_validator(mode="after")
    def _ranks_for_lora(self) -> Scientific:
        if "lora" in self.method and not self.rank:
            raise ValueError('rank: method "lora" needs at least one rank; found an empty list')
        return self


class Nuisance(_Frozen):
    """What every comparison is tuned or averaged over."""

    learning_rate: Annotated[
        list[Annotated[float, Field(gt=0)]], BeforeValidator(_listed), Field(min_length=1)
    ]
    seed: Annotated[
        list[Annotated[int, Field(ge=0, strict=True)]], BeforeValidator(_listed), Field(min_length=1)
    ] = [0]

    _once = field_validator("learning_rate", "seed")(_distinct)


class Fixed(_Frozen):
    """The same in every trial. What is left out is Hu et al. 2021's: per model and task where they differ."""

    data: str = "hub"  # "hub", "lab", or a folder of <TASK>/{train,validation}.tsv
    recipe: Recipes = "paper"  # whose values fill the gaps below: the paper's table or its released scripts
    batch_size: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None  # instead of epochs
    max_length: Annotated[int, Field(ge=4)] | None = None
    train_rows: Annotated[int, Field(ge=1)] | None = None  # the first n rows only
    validation_rows: Annotated[int, Field(ge=1)] | None = None
    eval_every: Annotated[int, Field(ge=1)] | Literal["epoch"] = "epoch"  # or every n steps
    target_modules: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)] = ["query", "value"]
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.06
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    precision: Precision | None = None  # of matrix products; None: bfloat16 on CUDA, float32 elsewhere
    retries: Annotated[int, Field(ge=0, strict=True)] = 1  # of a failed trial; no part of what a trial is

    @model_validator(mode="after")
    def _one_budget(self) -> Fixed:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps: expected one of them, found both")
        return self


_SECTIONS: dict[str, type[BaseModel]] = {"scientific": Scientific, "nuisance": Nuisance, "fixed": Fixed}


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_GAP = "\0"
_GAP_CODE = _CANONICAL.encode(_GAP)


def _hash(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Trial(_Frozen):
    """One training run, fully specified: equal configurations have equal ids, on every machine."""

    model: str
    task: str
    method: Method
    rank: int | None  # None: full fine-tuning
    scaling: Scaling | None
    learning_rate: float
    seed: int
    batch_size: int
    epochs: float | None
    steps: int | None
    max_length: int
    train_rows: int | None
    validation_rows: int | None
    eval_every: int | Literal["epoch"]
    target_modules: list[str]
    lora_alpha: float | None
    lora_dropout: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    adam_betas: tuple[float, float]
    adam_epsilon: float
    precision: Precision | None = None

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON (sorted keys, no blanks)."""
        return _hash(self.canonical())

    def canonical(self, **others: Any) -> str:
        """The configuration as JSON, with ``others`` in the place of its own values. What is younger than the first stores
        is left out where it has its default: their trials keep their ids."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        if self.precision is None:
            del values["precision"]
        return _CANONICAL.encode(values | others)

    @property
    def scale(self) -> float:
        """s of dW = s B A: alpha/r, alpha/sqrt(r) (rank-stabilised; Kalajdzievski 2023), or alpha itself."""
        assert self.rank is not None
        assert self.lora_alpha is not None
        divisor = {"alpha/r": self.rank, "alpha/sqrt(r)": math.sqrt(self.rank), "alpha": 1.0}
        return self.lora_alpha / divisor[self.scaling or "alpha/r"]

    def total_steps(self, rows: int) -> int:
        """Optimiser steps of this trial on ``rows`` training rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * math.ceil(rows / self.batch_size)))


class Study(_Frozen):
    """A validated study file. ``Study.load`` takes its path or the name of a built-in one ("lab", "paper")."""

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,80}$")]
    scientific: Scientific
    nuisance: Nuisance
    fixed: Fixed = Fixed()
    source: str = Field(default="", exclude=True)  # the TOML text
    folder: Path = Field(default=Path("."), exclude=True)  # relative paths in the file start here

    @classmethod
    def load(cls, study: str | Path) -> Study:
        """Reads a study file; ``ValueError`` (one line) says which key is wrong, ``FileNotFoundError`` what exists."""
        path = Path(study)
        if path.suffix == ".toml" or path.is_file():
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such study file; built-in studies are {', '.join(builtin())}"
                )
            return cls.parse(path.read_text(encoding="utf-8"), label=str(path), folder=path.resolve().parent)
        if str(study) not in builtin():
            raise FileNotFoundError(
                f"study {str(study)!r}: expected a .toml file or one of {', '.join(builtin())}"
            )
        text = (resources.files("rankscope") / "studies" / f"{study}.toml").read_text(encoding="utf-8")
        return cls.parse(text, label=str(study))

    @classmethod
    def parse(cls, text: str, *, label: str = "study", folder: Path | None = None) -> Study:
        """A study from TOML text; ``label`` names it in errors."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{label}: not TOML: {error}") from None
        for key in table.keys() - {"name", *_SECTIONS}:
            raise ValueError(f"{label}: {key}: unknown key; expected one of name, {', '.join(_SECTIONS)}")
        try:
            return cls(**table, source=text, folder=folder or Path.cwd())
        except ValidationError as error:
            raise ValueError(f"{label}: {complaint(error, _SECTIONS)}") from None

    def trials(self, largest_rank: Mapping[str, int]) -> list[Trial]:
        """The product of all lists; ``largest_rank[model]`` is what "d" stands for, and no rank may exceed it."""
        trials: dict[str, Trial] = {}
        for model in self.scientific.model:
            limit = largest_rank[model]
            for task in self.scientific.task:
                for kind in self._kinds(model, limit):
                    same = {"model": model, "task": task, **kind, **self._fixed(model, task, kind["method"])}
                    # encoded once, with two gaps: a plan of 100,000 trials spends most of its time here
                    any_of_them = Trial(learning_rate=1, seed=0, **same)
                    first, second, third = any_of_them.canonical(learning_rate=_GAP, seed=_GAP).split(
                        _GAP_CODE
                    )
                    for rate in self.nuisance.learning_rate:
                        for seed in self.nuisance.seed:
                            trial = Trial(learning_rate=rate, seed=seed, **same)
                            trial.__dict__["id"] = _hash(f"{first}{rate!r}{second}{seed}{third}")
                            trials.setdefault(trial.id, trial)  # "d" and 768 may both be listed
        return list(trials.values())

    def _kinds(self, model: str, limit: int) -> Iterable[dict[str, Any]]:
        if "lora" in self.scientific.method:
            for rank in self.scientific.rank:
                if rank != "d" and rank > limit:
                    raise ValueError(
                        f"rank: expected 1 to {limit} for model {model!r} (the smallest dimension of its "
                        f'{", ".join(self.fixed.target_modules)} weights); found {rank}; "d" stands for {limit}'
                    )
                for scaling in self.scientific.scaling:
                    yield {"method": "lora", "rank": limit if rank == "d" else rank, "scaling": scaling}
        if "full" in self.scientific.method:
            yield {"method": "full", "rank": None, "scaling": None}

    def _fixed(self, model: str, task: str, method: str) -> dict[str, Any]:
        """The fixed parameters, with Hu et al.'s in the gaps."""
        fixed = self.fixed.model_dump(exclude={"data", "retries", "recipe"})
        recipe = recipe_for(model=model, task=task, name=self.fixed.recipe)
        for key in ("batch_size", "lora_alpha", "max_length"):
            if fixed[key] is None:
                fixed[key] = getattr(recipe, key)
        if fixed["epochs"] is None and fixed["steps"] is None:
            fixed["epochs"] = recipe.epochs
        if method == "full":  # a full fine-tune has no adapter to describe
            fixed |= {"lora_alpha": None, "lora_dropout": 0.0}
        return fixed


# what the trials of a pack have in common, besides the target modules: a list
_SHARED = {
    "lora": attrgetter(
        *Trial.model_fields.keys() - {"rank", "scaling", "learning_rate", "lora_alpha", "target_modules"}
    ),
    "full": attrgetter("id"),
}


def packs(trials: Iterable[Trial], *, size: int) -> list[list[Trial]]:
    """Trials that may train together, at most ``size`` at once, ranks side by side so that padding is short.

    Members share model, task, seed, batches and budget; rank, scaling and learning rate differ. Full fine-tunes
    train alone: they share no frozen weight.
    """
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        shared = _SHARED[trial.method](trial)
        key = (*shared, *trial.target_modules)
        groups.setdefault(key, []).append(trial)
    result: list[list[Trial]] = []
    for group in groups.values():
        group.sort(key=lambda t: (t.rank or 0, t.scaling or "", t.learning_rate))
        count = math.ceil(len(group) / size)  # of nearly equal length: 9 trials are 5 + 4, not 8 + 1
        bounds = [round(i * len(group) / count) for i in range(count + 1)]
        result += [group[a:b] for a, b in itertools.pairwise(bounds)]
    return result


def builtin() -> list[str]:
    """Names of the studies that ship with the package."""
    folder = resources.files("rankscope") / "studies"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )
