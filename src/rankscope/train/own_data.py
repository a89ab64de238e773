"""The rows of a task of the user's own, checked: the classes and their order, train and
validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankscope.study.own_task import Fraction, OwnTask
from rankscope.study.tasks import Kind, Task
from rankscope.train.chats import chat_columns
from rankscope.train.labels import class_names_of, classes_of, measured, numbered
from rankscope.train.table_file import CLASS_NAMES
from rankscope.train.table_source import VALIDATION, Source

TEXT = ("text", "text_pair")  # what the columns are called once they are read


def read_own_task(
    name: str,
    own: OwnTask,
    folder: Path,
    *,
    train_rows: int | None = None,
    validation_rows: int | None = None,
) -> tuple[Task, pd.DataFrame, pd.DataFrame]:
    """The task with its classes, and the rows to train and to validate on: ``TEXT`` and ``label``.

    Classes are those of the training rows: in the order given (``labels``), else in that of a
    ``datasets`` data set, else whole numbers by size and names by their letters. Rows of a language
    model have ``TEXT[0]``, a text or a chat (``train.chats``), and no label. ``ValueError`` or
    ``OSError``, one line, for whatever can't be trained on.
    """
    try:
        (train, where), (validation, place) = _splits(own, Source(own, folder))
        known = train.attrs.get(CLASS_NAMES)
        has_classes = not (own.is_regression or own.is_language)
        classes = classes_of(train["label"], own, known, where) if has_classes else ()
        splits = [
            _with_numbers(frame.head(len(frame) if rows is None else rows), own, classes, said)
            for frame, rows, said in (
                (train, train_rows, where),
                (validation, validation_rows, place),
            )
        ]
    except (ValueError, OSError) as error:
        raise type(error)(f"[task.{name}] {error}") from None
    kind: Kind = own.kind or ("regression" if own.is_regression else "classification")
    task = Task(
        name=name,
        text=tuple(name for name in TEXT if name in splits[0]),
        kind=kind,
        greater_is_better=not own.is_language,
        num_labels=len(classes) or 1,
        metric=own.chosen_metric,
        labels=classes,
    )
    if task.metric == "f1" and len(classes) != 2:
        raise ValueError(
            f"[task.{name}] metric: f1 is of two classes, found {len(classes)}: take f1_macro"
        )
    return task, splits[0], splits[1]


def _splits(
    own: OwnTask, source: Source
) -> tuple[tuple[pd.DataFrame, str], tuple[pd.DataFrame, str]]:
    """Train and validation, with the columns that are read, and their places in words."""
    train, validation = own.train, own.validation
    name = train if isinstance(train, str) else None
    if source.is_one_file:
        if name or isinstance(validation, str):
            raise ValueError(
                f"train and validation: expected shares of the rows of {own.data}, such as "
                "validation = 0.2; found names. Leave data out, and name files"
            )
        if train is None and validation is None:
            raise ValueError(
                f"validation: expected a file, or a share of the rows of {own.data}, such as "
                "validation = 0.2; found none"
            )
    all_rows, where = source.read(name, otherwise=("train",))
    rows = _columns(all_rows, own, where)
    parts = _shares(own)
    if source.is_one_file or isinstance(validation, Fraction):
        taken, left = _drawn(rows, own, *parts)
        return (taken, where), (left, where)
    if isinstance(train, Fraction):
        rows, _ = _drawn(rows, own, train.fraction, 0.0, train.seed)
    other, place = source.read(validation, otherwise=VALIDATION)
    return (rows, where), (_columns(other, own, place), place)


def _shares(own: OwnTask) -> tuple[float | None, float, int]:
    """-> the share to train on (None: what validation leaves), to validate on, and the seed"""
    drawn = [part for part in (own.validation, own.train) if isinstance(part, Fraction)]
    seed = drawn[0].seed if drawn else 0
    first = own.train.fraction if isinstance(own.train, Fraction) else None
    if isinstance(own.validation, Fraction):
        return first, own.validation.fraction, seed
    return None, 1 - (first or 0.0), seed


def _drawn(
    rows: pd.DataFrame, own: OwnTask, train: float | None, validation: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both parts in the order of the rows. Of every class the same share is drawn, and one row at
    least is left to train on; numbers are one class."""
    strata = np.zeros(len(rows), dtype=int)
    if "label" in rows and not own.is_regression:
        strata = pd.factorize(rows["label"], sort=True)[0]
    generator = np.random.default_rng(seed)
    kept: list[int] = []
    held: list[int] = []
    for stratum in np.unique(strata):
        members = generator.permutation(np.flatnonzero(strata == stratum))
        count = min(round(validation * len(members)), len(members) - 1)
        last = None if train is None else count + max(1, round(train * len(members)))
        held += members[:count].tolist()
        kept += members[count:last].tolist()
    return rows.iloc[sorted(kept)], rows.iloc[sorted(held)]


def _columns(frame: pd.DataFrame, own: OwnTask, where: str) -> pd.DataFrame:
    """``TEXT`` and ``label`` (the class's name, or what should be a number) of every row, with the
    row's number as index."""
    found = [str(name) for name in frame.columns]
    text = own.columns(found)
    columns = text if own.is_language else [*text, own.label]
    for column in columns:
        if found.count(column) != 1:
            word = "no column" if column not in found else f"{found.count(column)} columns"
            raise ValueError(
                f"{where}: expected the columns {', '.join(map(repr, columns))}; found {word} "
                f"{column!r} among {', '.join(map(repr, found))[:300]}{_hint(found)}"
            )
    if not len(frame):
        raise ValueError(f"{where}: expected rows; found none")
    result = pd.DataFrame(index=range(1, len(frame) + 1))
    if own.kind == "sft":
        return result.assign(**{TEXT[0]: chat_columns(frame[text], where)})
    for name, column in zip(TEXT, text, strict=False):
        values = [_text(value) for value in frame[column]]
        if None in values:
            missing = values.index(None)
            raise ValueError(
                f"{where}: row {missing + 1}: expected text in {column!r}; found "
                f"{str(frame[column].iloc[missing])[:40]!r}"
            )
        if (row := _not_unicode(values)) is not None:
            raise ValueError(
                f"{where}: row {row + 1}: expected text in {column!r}; found half of a surrogate "
                "pair, which is no character"
            )
        result[name] = values
    blank = np.logical_and.reduce([result[name].str.strip().eq("") for name in result])
    if blank.any():
        raise ValueError(
            f"{where}: row {int(blank.argmax()) + 1}: expected text in "
            f"{' or '.join(map(repr, text))}; found none"
        )
    if own.is_language:
        return result
    known = frame.attrs.get(CLASS_NAMES, {}).get(own.label)
    labels = frame[own.label].set_axis(result.index)
    if not own.is_regression:
        labels = class_names_of(labels, known, where)
    result = result.assign(label=labels)
    result.attrs[CLASS_NAMES] = known
    return result


def _with_numbers(
    rows: pd.DataFrame, own: OwnTask, classes: Sequence[str], where: str
) -> pd.DataFrame:
    if not len(rows):
        raise ValueError(f"{where}: expected rows to validate on; found none: take a larger share")
    if own.is_language:
        return rows.reset_index(drop=True)
    labels = rows["label"]
    numbers = numbered(labels, classes, where) if classes else measured(labels, where)
    return rows.assign(label=numbers).reset_index(drop=True)


def _hint(columns: Sequence[str]) -> str:
    """Where a file seems to be separated by something else than its name says."""
    if len(columns) != 1:
        return ""
    marks = [
        name for mark, name in ((";", "';'"), ("\t", "tabs"), (",", "','")) if mark in columns[0]
    ]
    return f": are they separated by {marks[0]}? .csv has ',', .tsv tabs" if marks else ""


def _not_unicode(values: Sequence[str | None]) -> int | None:
    """The first text that UTF-8 can't hold: JSON may escape half a character."""
    for row, value in enumerate(values):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            return row
    return None


def _text(value: Any) -> str | None:
    """A number is its text; None for what is neither, and for a missing value."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float | np.number)
    return str(value) if is_number and value == value else None  # NaN is not itself
