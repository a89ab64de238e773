"""The sections of a study file, and the messages about mistakes in them.

Three kinds of parameter, in the words of Google's deep-learning tuning playbook: *scientific* ones
are what the study compares, *nuisance* ones are tuned or averaged over, *fixed* ones are the same
in every trial.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from rankscope.study.own_task import OwnTask
from rankscope.study.tasks import Name as Recipes
from rankscope.study.trial import LISTED, STRICT, Method, Optimizer, Precision, Scaling, Schedule
from rankscope.study.values import (
    EXPECTED,
    Alpha,
    Modules,
    Pattern,
    Rank,
    Several,
    Start,
    distinct,
    listed,
    module_lists,
)


class Scientific(BaseModel):
    """What the study compares; each value is a list, and the trials are their product."""

    model_config = STRICT

    model: Annotated[list[str], BeforeValidator(listed), Field(min_length=1)]
    task: Annotated[list[str], BeforeValidator(listed), Field(min_length=1)]
    method: Annotated[list[Method], BeforeValidator(listed), Field(min_length=1)] = [
        "lora",
        "full",
    ]
    rank: Annotated[list[Rank], BeforeValidator(listed)] = [8]
    scaling: Annotated[list[Scaling], BeforeValidator(listed), Field(min_length=1)] = ["alpha/r"]
    # None: as in [fixed]
    target_modules: (
        Annotated[list[Modules], BeforeValidator(module_lists), Field(min_length=1)] | None
    ) = None
    lora_alpha: Several[Alpha] | None = None
    init_lora_weights: Several[Start] | None = None
    use_dora: Several[StrictBool] | None = None
    rank_pattern: Several[Pattern] | None = None  # {}: every layer at ``rank``
    optimizer: Several[Optimizer] | None = None
    lora_plus_ratio: Several[Annotated[float, Field(ge=1)]] | None = None  # 1: not LoRA+
    lr_scheduler_type: Several[Schedule] | None = None

    _once = field_validator("model", "task", "method", "rank", "scaling", *LISTED)(distinct)

    @model_validator(mode="after")
    def _ranks_for_lora(self) -> Scientific:
        if "lora" in self.method and not self.rank:
            raise ValueError('rank: method "lora" needs at least one rank; found an empty list')
        return self


class Nuisance(BaseModel):
    """What comparisons are tuned or averaged over."""

    model_config = STRICT

    learning_rate: Annotated[
        list[Annotated[float, Field(gt=0)]], BeforeValidator(listed), Field(min_length=1)
    ]
    seed: Annotated[
        list[Annotated[int, Field(ge=0, strict=True)]],
        BeforeValidator(listed),
        Field(min_length=1),
    ] = [0]

    _once = field_validator("learning_rate", "seed")(distinct)


class Budget(BaseModel):
    """``[fixed.task.NAME]``: settings of one task, such as Hu et al.'s budgets."""

    model_config = STRICT

    batch_size: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None  # instead of epochs
    max_length: Annotated[int, Field(ge=4)] | None = None
    eval_every: Annotated[int, Field(ge=1)] | Literal["epoch"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps: expected one of them, found both")
        return self


class Fixed(Budget):
    """The same in every trial. Defaults are Hu et al. 2021's, per model and task if they differ."""

    model_config = STRICT

    data: str = "hub"  # "hub", "lab", or a folder of <TASK>/{train,validation}.tsv
    recipe: Recipes = (
        "paper"  # the source of defaults below: the paper's table or its released scripts
    )
    task: dict[str, Budget] = {}
    train_rows: Annotated[int, Field(ge=1)] | None = None  # the first n rows only
    validation_rows: Annotated[int, Field(ge=1)] | None = None
    # the share of validation rows for choosing rates and checkpoints; results are then reported on
    # the other rows. None: both on all rows
    validation_split: Annotated[float, Field(gt=0, lt=1)] | None = None
    eval_every: Annotated[int, Field(ge=1)] | Literal["epoch"] = "epoch"  # or every n steps
    target_modules: Annotated[list[str], BeforeValidator(listed), Field(min_length=1)] = [
        "query",
        "value",
    ]
    # of the scale; "2r": two times the rank
    lora_alpha: Alpha | None = None
    init_lora_weights: Start = True
    use_dora: StrictBool = False
    rank_pattern: Pattern = {}
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    optimizer: Optimizer = "adamw"
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None = None
    lr_scheduler_type: Schedule = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.06
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    precision: Precision | None = (
        None  # of matrix products; None: bfloat16 on CUDA, float32 elsewhere
    )
    retries: Annotated[int, Field(ge=0, strict=True)] = (
        1  # of a failed trial; not part of a trial's identity
    )

    @model_validator(mode="after")
    def _lora_plus_is_adamw(self) -> Self:
        if self.lora_plus_ratio is not None and self.optimizer != "adamw":
            raise ValueError(
                f'lora_plus_ratio: expected optimizer = "adamw"; found {self.optimizer!r}'
            )
        return self


class Arm(Scientific, Nuisance):
    """Further trials, a product of their own: lists missing from an ``[[arm]]`` are the study's.
    With ``budget`` it trains this many times as long, with the schedule stretched, as H3's
    continued training."""

    budget: Annotated[float, Field(gt=0)] = 1.0


SECTIONS: dict[str, type[BaseModel]] = {
    "scientific": Scientific,
    "nuisance": Nuisance,
    "fixed": Fixed,
    "arm": Arm,
    "fixed.task": Budget,
    "task": OwnTask,
}


_SHARE = "a file, a split, or a share of the rows: 0.2 or { fraction = 0.2, seed = 0 }"
_OF_A_TASK = {"text": "one or two names of columns", "train": _SHARE, "validation": _SHARE}


def validation_message(error: ValidationError) -> str:
    """One line: where, what was expected, what was found, what to type.

    An unknown key comes first, since it often explains a missing one; else pydantic's first error.
    """
    found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    if not found["loc"]:  # about the study as a whole
        return found["msg"].removeprefix("Value error, ")
    section, *keys = (str(part) for part in found["loc"])
    name = f"[{section}]"
    if section == "arm" and keys:  # a list of tables: the index
        name, keys = f"[[arm]] {int(keys[0]) + 1}", keys[1:]
    elif section == "fixed" and keys[:1] == ["task"] and len(keys) > 1:  # tables by task
        name, section, keys = f"[fixed.task.{keys[1]}]", "fixed.task", keys[2:]
    elif section == "task" and keys:  # tables by name
        name, keys = f"[task.{keys[0]}]", keys[1:]
    if section not in SECTIONS:
        place, key = section, ""
    else:
        # pydantic appends a union's branch ("constrained-int"), which is not in the file
        key = keys[0] if keys else ""
        place = f"{name} {key}".rstrip()
    if found["type"] == "extra_forbidden" and not (section == "task" and key in _OF_A_TASK):
        known = list(SECTIONS[section].model_fields)
        near = difflib.get_close_matches(key, known, n=1)
        return f"{place}: unknown key; " + (
            f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        )
    if found["type"] == "missing":
        return f"{place}: expected a value, found none"
    if section == "task" and key in _OF_A_TASK and found["type"] not in ("value_error", "missing"):
        return f"{place}: expected {_OF_A_TASK[key]}; found {found['input']!r}"
    message = (
        found["msg"]
        .removeprefix("Value error, ")
        .removeprefix(f"{key}: ")
        .removeprefix("Input should be ")
    )
    if found["type"] == "value_error":
        return f"{place}: {message}"
    if key in EXPECTED and section in ("fixed", "scientific", "arm"):
        message = EXPECTED[key]
    elif found["type"] == "string_pattern_mismatch":
        message = "letters, digits, '.', '_' and '-'"
    elif found["type"] == "too_short":
        few = found["ctx"]["min_length"]
        message = f"{few} value{'s' * (few > 1)} at least"
    elif found["type"] == "string_too_short":
        message = "text that is not empty"
    if found["type"] == "list_type" and section == "arm":
        return f"{place}: expected tables headed [[arm]]; found {found['input']!r}"
    word = {"rank": "d", "eval_every": "epoch"}.get(key)
    if word and not isinstance(found["input"], int):
        message = f"a whole number from 1, or {word!r}"
    compared = section == "fixed" and key in LISTED and isinstance(found["input"], list)
    where = ": a list stands in [scientific]" if compared else ""
    return f"{place}: expected {message}; found {found['input']!r}{where}"
