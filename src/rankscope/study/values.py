"""A study file as a table of TOML, read within limits; the values that its keys may have, and what
a message says was expected."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import regex
from pydantic import AfterValidator, BeforeValidator, Field

from rankscope.study.trial import ALL_LINEAR, Init

_BYTES = 2**20  # of a study file; the largest that ships has 2,000
_LINE = 20_000  # characters: tomllib's time grows with the square of the parts of a.b.c


def read_toml(path: Path) -> str:
    """The text of a file. ``ValueError``, one line, if it is too large or no UTF-8."""
    if (size := path.stat().st_size) > _BYTES:
        raise ValueError(f"{path}: expected at most {_BYTES} bytes of TOML; found {size}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8; found {error}. Save it as UTF-8") from None


def parse_toml(text: str, label: str) -> dict[str, Any]:
    """The table; ``label`` names it in a ``ValueError`` of one line."""
    if (longest := max(map(len, text.split("\n")))) > _LINE:
        raise ValueError(
            f"{label}: expected lines of at most {_LINE} characters; found one of {longest}. Lists "
            "may have several lines"
        )
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{label}: not TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ValueError(f"{label}: not TOML: {error}") from None


EXPECTED = {
    "lora_alpha": 'a number above 0, or a multiple of the rank such as "r" or "2r"',
    "init_lora_weights": 'true, "gaussian", "orthogonal", "pissa" or "olora"',
    "use_dora": "true or false",
    "rank_pattern": 'layers and their ranks from 1, such as { "0.attention.self.query" = 4 }',
}

TimesRank = Annotated[str, Field(pattern=r"^(\d*\.?\d*[1-9]\d*)?r$")]
Rank = Annotated[int, Field(ge=1, strict=True)] | Literal["d"]


def listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def distinct(values: list[Any] | None) -> list[Any] | None:
    met: set[str] = set()
    for value in values or ():
        if repr(value) in met:
            raise ValueError(f"expected every value once; found {value!r:.80} twice")
        met.add(repr(value))
    return values


def module_lists(value: Any) -> Any:
    """A list of lists of names, or of "all-linear"."""
    values = listed(value)
    plain = [one for one in values if isinstance(one, str) and one != ALL_LINEAR]
    if plain and len(values) > 1:
        raise ValueError(
            'expected a list of lists, such as [["query", "value"], "all-linear"], or names for '
            f"all trials in [fixed]; found {value!r}"
        )
    return [listed(one) for one in values]


def _start(value: Any) -> Any:
    """Refuses initialisations that need a pass over the data."""
    if value in ("eva", "corda", "loftq", "lora_ga"):
        raise ValueError(
            f"expected {EXPECTED['init_lora_weights']}; found {value!r}, which "
            + (
                "quantises the base"
                if value == "loftq"
                else "needs a pass over the training data before the first step"
            )
        )
    return value


def _expressions(value: dict[str, int]) -> dict[str, int]:
    for expression in value:
        try:
            regex.compile(expression)
        except regex.error as error:
            raise ValueError(
                f"expected names of layers, or regular expressions; found {expression!r}: {error}"
            ) from None
    return value


Start = Annotated[Init, BeforeValidator(_start)]
Alpha = Annotated[float, Field(gt=0)] | TimesRank
Pattern = Annotated[
    dict[str, Annotated[int, Field(ge=1, strict=True)]], AfterValidator(_expressions)
]
Modules = Annotated[list[str], Field(min_length=1)]
T = TypeVar("T")
Several = Annotated[list[T], BeforeValidator(listed), Field(min_length=1)]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
ReportTo = Annotated[list[Tracker], BeforeValidator(listed), AfterValidator(distinct)]
