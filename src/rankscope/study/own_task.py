"""``[task.NAME]`` in a study file: the user's own task on the user's own data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from rankscope.study.tasks import LANGUAGE, REGRESSION, TASKS, Kind, Metric
from rankscope.study.trial import STRICT

_Part = Annotated[float, Field(gt=0, lt=1)]


class Fraction(BaseModel):
    """A random share of the rows, drawn from ``seed`` and stratified by class."""

    model_config = STRICT

    fraction: _Part
    seed: Annotated[int, Field(ge=0, strict=True)] = 0


def _fraction(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"fraction": value} if number else value


def _text(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _class_names(value: Any) -> Any:
    """Truth values as JSON and Parquet files give them to classes."""
    if not isinstance(value, list):
        return value
    return [str(one).lower() if isinstance(one, bool) else one for one in value]


Name = Annotated[str, Field(min_length=1)]
Split = Annotated[Fraction | Name, BeforeValidator(_fraction)]


class OwnTask(BaseModel):
    """The data of a task, the columns to read, and the metric.

    ``data`` is a file (CSV, TSV, JSON lines, Parquet), a folder of them or of a saved ``datasets``
    data set, or a hub id, with ``config`` if it has several. ``train`` and ``validation``
    are files, splits, or a share of the rows.

    ``kind`` "causal-lm" reads one column of ``text`` and no ``label``; "sft" reads a column of
    messages, or two columns, prompt and completion: ``text`` names them, else they are called so.
    """

    model_config = STRICT

    kind: Kind | None = None  # None: as the metric implies, else classification
    data: Name | None = None  # None: train and validation are files
    config: Name | None = None
    # None: "text" of a causal-lm; "messages", or "prompt" and "completion", of an sft
    text: (
        Annotated[list[Name], BeforeValidator(_text), Field(min_length=1, max_length=2)] | None
    ) = None
    label: Name = "label"
    # the order of classes
    labels: (
        Annotated[list[str | int], BeforeValidator(_class_names), Field(min_length=2)] | None
    ) = None
    train: Split | None = None
    validation: Split | None = None
    metric: Metric | None = None

    @property
    def is_regression(self) -> bool:
        return self.kind == "regression" or (self.kind is None and self.metric in REGRESSION)

    @property
    def is_language(self) -> bool:
        return self.kind in ("causal-lm", "sft")

    def columns(self, found: Sequence[str]) -> list[str]:
        """The text columns to read, among those ``found`` in the data. ``ValueError`` where chats
        stand in both forms."""
        if self.text is not None:
            return self.text
        if self.kind == "causal-lm":
            return ["text"]
        pair = ["prompt", "completion"]
        if not set(pair) <= set(found):
            return ["messages"] if "messages" in found or "prompt" not in found else pair
        if "messages" in found:
            raise ValueError(
                'text: expected text = "messages" or text = ["prompt", "completion"] where the '
                "data have both; found none"
            )
        return pair

    @property
    def chosen_metric(self) -> Metric:
        if self.is_language:
            return self.metric or "eval_loss"
        return self.metric or ("pearson" if self.is_regression else "accuracy")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.is_language or self.metric in LANGUAGE:
            self._check_language()
        elif self.text is None:
            raise ValueError("text: expected a value, found none")
        elif self.is_regression != (self.chosen_metric in REGRESSION):
            raise ValueError(
                "metric: expected "
                + (
                    f'{" or ".join(REGRESSION)} with kind = "regression"'
                    if self.is_regression
                    else "accuracy, f1_macro, f1 or matthews_correlation with kind = "
                    '"classification"'
                )
                + f"; found {self.metric!r}"
            )
        if self.is_regression and self.labels:
            raise ValueError('labels: expected none with kind = "regression"')
        if self.labels and len({str(label) for label in self.labels}) < len(self.labels):
            raise ValueError(f"labels: expected every class once; found {self.labels}")
        columns = [*(self.text or []), *([] if self.is_language else [self.label])]
        if len(set(columns)) < len(columns):
            raise ValueError(f"text and label: expected different columns; found {columns}")
        if self.data is None and not (
            isinstance(self.train, str) and isinstance(self.validation, str | Fraction)
        ):
            raise ValueError(
                "data: expected a file, a folder or a hub id, or files as train and validation; "
                "found none"
            )
        self._check_shares()
        return self

    def _check_language(self) -> None:
        if not self.is_language or self.chosen_metric not in LANGUAGE:
            raise ValueError(
                f'metric: expected {" or ".join(LANGUAGE)} with kind = "causal-lm" and "sft", and '
                f"with no other; found {self.metric!r}"
            )
        for name in ("label", "labels"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name}: expected none with kind = "{self.kind}"')
        if self.kind == "causal-lm" and len(self.text or [""]) > 1:
            raise ValueError(
                f'text: expected one column with kind = "causal-lm"; found {self.text}'
            )

    def _check_shares(self) -> None:
        shares = [part for part in (self.train, self.validation) if isinstance(part, Fraction)]
        if sum(share.fraction for share in shares) > 1 + 1e-9:
            raise ValueError("train and validation: expected shares that add up to 1 at most")
        if len({share.seed for share in shares}) > 1:
            raise ValueError("train and validation: expected one seed; found two")


def check_name(name: str) -> None:
    """``ValueError`` for the name of a built-in task, or a name that is invalid in a store."""
    if name in TASKS:
        raise ValueError(
            f"[task.{name}]: expected another name: {name} is a built-in task, whose data are "
            "named in [fixed] data"
        )
    if not re.fullmatch(r"\w[\w .+-]{0,79}", name):
        raise ValueError(
            f"[task.{name[:80]!r}]: expected a name of letters, digits, blanks, '.', '_', '+' and "
            "'-', 80 at most"
        )
