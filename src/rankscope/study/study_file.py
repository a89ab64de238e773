"""Reads a study file and lists its trials."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from rankscope.study.own_task import OwnTask, check_name
from rankscope.study.sections import (
    SECTIONS,
    Arm,
    Budget,
    Fixed,
    Nuisance,
    Scientific,
    validation_message,
)
from rankscope.study.settings import Setting, check_size, settings
from rankscope.study.tasks import check_task, recipe_for
from rankscope.study.trial import GAP, GAP_CODE, LISTED, STRICT, Trial, digest, setting_of
from rankscope.study.values import ReportTo, parse_toml, read_toml

_SIDES = ("scientific", "fixed")


class Study(BaseModel):
    """A validated study file. ``Study.load`` takes its path or the name of a built-in one ("lab",
    "paper")."""

    model_config = STRICT

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,80}$")]
    scientific: Scientific
    nuisance: Nuisance
    fixed: Fixed = Fixed()
    arm: list[Arm] = []
    task: dict[str, OwnTask] = {}  # the study's own tasks
    # trackers for finished trials; not part of the store
    report_to: ReportTo = Field(default=[], exclude=True)
    source: str = Field(default="", exclude=True)  # the TOML text
    folder: Path = Field(
        default=Path("."), exclude=True
    )  # relative paths in the file are relative to it

    def __init__(self, **sections: Any) -> None:
        """From the sections of the TOML file. ``ValueError``, one line, names the wrong key."""
        try:
            super().__init__(**sections)
        except ValidationError as error:
            raise ValueError(f"study: {validation_message(error)}") from None

    @model_validator(mode="before")
    @classmethod
    def _inherited(cls, table: Any) -> Any:
        """Arms completed by the study's lists; values that are not tables are left to the fields'
        validation."""
        own, arms = [table.get(key, {}) for key in ("scientific", "nuisance")], table.get("arm", [])
        if not all(isinstance(part, dict) for part in own) or not isinstance(arms, list):
            return table
        inherited = own[0] | own[1]
        return table | {"arm": [inherited | arm if isinstance(arm, dict) else arm for arm in arms]}

    @model_validator(mode="after")
    def _alpha_follows_one_rule(self) -> Self:
        for part in (self.scientific, *self.arm):
            alphas: Sequence[float | str | None] = part.lora_alpha or [self.fixed.lora_alpha]
            for alpha in alphas:
                if isinstance(alpha, str) and "alpha" in part.scaling:
                    raise ValueError(
                        'lora_alpha: expected a number with scaling = "alpha", where it is the '
                        f"scale itself; found {alpha!r}"
                    )
        return self

    @model_validator(mode="after")
    def _tasks_known(self) -> Self:
        for name in self.task:
            check_name(name)
        for name in (*self.tasks, *self.fixed.task):
            check_task(name, self.task)
        return self

    @classmethod
    def load(cls, study: str | Path) -> Study:
        """Reads a study file. ``ValueError``, one line, names the wrong key; ``FileNotFoundError``
        lists the built-in studies."""
        path = Path(study)
        if path.suffix == ".toml" or path.is_file():
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such study file; built-in studies are {', '.join(builtin())}"
                )
            return cls.parse(read_toml(path), label=str(path), folder=path.resolve().parent)
        if str(study) not in builtin():
            raise FileNotFoundError(
                f"study {str(study)!r}: expected a .toml file or one of {', '.join(builtin())}"
            )
        text = (resources.files("rankscope") / "studies" / f"{study}.toml").read_text(
            encoding="utf-8"
        )
        return cls.parse(text, label=str(study))

    @classmethod
    def parse(cls, text: str, *, label: str = "study", folder: Path | None = None) -> Study:
        """A study from TOML text; ``label`` names it in errors."""
        table = parse_toml(text, label)
        known = ["name", "report_to", *(section for section in SECTIONS if "." not in section)]
        for key in sorted(table.keys() - set(known)):
            raise ValueError(f"{label}: {key}: unknown key; expected one of {', '.join(known)}")
        for name in LISTED:
            if all(isinstance(table.get(key), dict) and name in table[key] for key in _SIDES):
                raise ValueError(
                    f"{label}: {name}: expected in [scientific] or in [fixed]; found in both"
                )
        try:
            return cls(**table, source=text, folder=folder or Path.cwd())
        except ValueError as error:
            raise ValueError(f"{label}: {str(error).removeprefix('study: ')}") from None

    def _repr_html_(self) -> str:
        """For notebooks: the lists whose product is trained."""
        from rankscope.notebook import table

        own = self.scientific.model_dump() | self.nuisance.model_dump()
        rows = [(key, _listed(value)) for key, value in own.items()]
        for number, arm in enumerate(self.arm, start=1):
            other = {key: value for key, value in arm.model_dump().items() if own.get(key) != value}
            said = "; ".join(f"{key}: {_listed(value)}" for key, value in other.items())
            rows.append((f"arm {number}", said))
        return table(["parameter", "values"], rows, numbers=[False] * 2, title=f"study {self.name}")

    @property
    def models(self) -> list[str]:
        """The models of the study and of its arms, each once."""
        return list(
            dict.fromkeys(name for part in (self.scientific, *self.arm) for name in part.model)
        )

    @property
    def tasks(self) -> list[str]:
        """The tasks of the study and of its arms, each once."""
        return list(
            dict.fromkeys(name for part in (self.scientific, *self.arm) for name in part.task)
        )

    @property
    def rank_patterns(self) -> list[dict[str, int]]:
        """The ``rank_pattern`` of its trials that have one."""
        parts = (self.scientific, *self.arm)
        return [p for part in parts for p in part.rank_pattern or [self.fixed.rank_pattern] if p]

    @property
    def targets(self) -> list[list[str]]:
        """The ``target_modules`` of its trials, each list once."""
        found: list[list[str]] = []
        for part in (self.scientific, *self.arm):
            for one in part.target_modules or [self.fixed.target_modules]:
                if one not in found:
                    found.append(one)
        return found

    def trials(self, largest_rank: Mapping[str, int]) -> list[Trial]:
        """The product of all lists, then those of the arms; ``largest_rank[model]`` is what "d"
        stands for, and no rank may exceed it."""
        main = Arm(**self.scientific.model_dump(), **self.nuisance.model_dump())
        check_size([main, *self.arm])
        trials: dict[str, Trial] = {}
        for arm in [main, *self.arm]:
            for trial in self._product(arm, largest_rank):
                trials.setdefault(trial.id, trial)  # "d" and 768 may both be listed
        return list(trials.values())

    def budgets(self, largest_rank: Mapping[str, int]) -> dict[str, float]:
        """Trial id -> its budget as a multiple of the study's, where that is not 1."""
        arms = [arm for arm in self.arm if arm.budget != 1]
        return {trial.id: arm.budget for arm in arms for trial in self._product(arm, largest_rank)}

    def _product(self, arm: Arm, largest_rank: Mapping[str, int]) -> Iterator[Trial]:
        for model, task in itertools.product(arm.model, arm.task):
            for kind, setting in self._kinds(arm, model, largest_rank[model]):
                same = {"model": model, "task": task, **kind}
                same |= self._fixed(model, task, kind["rank"], arm.budget, setting.values)
                same["setting"] = setting_of(same, setting.listed)
                # encoded once, with two placeholders: a plan of 100,000 trials spends most of its
                # time here
                any_of_them = Trial(learning_rate=1, seed=0, **same)
                first, second, third = any_of_them.canonical(learning_rate=GAP, seed=GAP).split(
                    GAP_CODE
                )
                for rate, seed in itertools.product(arm.learning_rate, arm.seed):
                    id = digest(f"{first}{rate!r}{second}{seed}{third}")
                    own = {
                        "learning_rate": rate,
                        "seed": seed,
                        "id": id,
                    }  # valid because the study is
                    yield any_of_them.model_copy(update=own)

    def _kinds(self, arm: Arm, model: str, limit: int) -> Iterator[tuple[dict[str, Any], Setting]]:
        lora = itertools.product(settings(arm, self.fixed, "lora"), arm.rank)
        for setting, named in lora if "lora" in arm.method else ():
            rank = limit if named == "d" else named
            init = setting.values.get("init_lora_weights", self.fixed.init_lora_weights)
            pattern = setting.values.get("rank_pattern", self.fixed.rank_pattern)
            odd = [one for one in (rank, *pattern.values()) if one % 2]
            if init == "orthogonal" and odd:
                raise ValueError(
                    f'init_lora_weights: "orthogonal" needs even ranks; found {odd[0]}'
                )
            if (largest := max([rank, *pattern.values()])) > limit:
                targets = [name for one in self.targets for name in one]
                raise ValueError(
                    f"rank: expected 1 to {limit} for model {model!r} (the smallest dimension of "
                    f"its {', '.join(dict.fromkeys(targets))} weights); found {largest}; "
                    f'"d" stands for {limit}'
                )
            for scaling in arm.scaling:
                yield {"method": "lora", "rank": rank, "scaling": scaling}, setting
        if "full" in arm.method:
            for setting in settings(arm, self.fixed, "full"):
                yield {"method": "full", "rank": None, "scaling": None}, setting

    def _fixed(
        self, model: str, task: str, rank: int | None, budget: float, setting: dict[str, Any]
    ) -> dict[str, Any]:
        """The fixed parameters, completed by Hu et al.'s and overridden by ``setting``, for
        ``budget`` times as long; for LoRA, or for full fine-tuning (``rank`` None)."""
        fixed = self.fixed.model_dump(exclude={"data", "retries", "recipe", "task"}) | setting
        own = self.fixed.task.get(task, Budget()).model_dump(exclude_none=True)
        if own.keys() & {"epochs", "steps"}:
            fixed |= {"epochs": None, "steps": None}
        fixed |= own
        recipe = recipe_for(model=model, task=task, name=self.fixed.recipe)
        for key in ("batch_size", "lora_alpha", "max_length"):
            if fixed[key] is None:
                fixed[key] = getattr(recipe, key)
        if fixed["epochs"] is None and fixed["steps"] is None:
            fixed["epochs"] = recipe.epochs
        if budget != 1:
            if fixed["steps"] is None:
                fixed["epochs"] *= budget
            else:
                fixed["steps"] = max(1, round(fixed["steps"] * budget))
        if rank is None:  # a full fine-tune has no adapter to describe
            fixed |= {"lora_alpha": None, "lora_dropout": 0.0, "init_lora_weights": True}
            fixed |= {"lora_plus_ratio": None, "use_dora": False, "rank_pattern": {}}
        elif isinstance(fixed["lora_alpha"], str):
            fixed["lora_alpha"] = float(fixed["lora_alpha"][:-1] or 1) * rank
        return fixed


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def builtin() -> list[str]:
    """The names of the built-in studies."""
    folder = resources.files("rankscope") / "studies"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )
