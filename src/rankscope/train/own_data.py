"""The rows of a task of the user's own, checked: the classes and their order, train and
validation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankscope.study.own_task import Fraction, OwnTask
from rankscope.study.tasks import Kind, Task
from rankscope.train.chats import chat_columns
from rankscope.train.labels import class_names_of, classes_of, folded, measured, numbered, said
from rankscope.train.table_file import CLASS_NAMES
from rankscope.train.table_source import VALIDATION, Source

TEXT = ("text", "text_pair")  # what the columns are called once they are read
BLANK = "blank"  # in a frame's attrs: rows without text that were left out


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
    ``datasets`` data set or of ordered categories, else whole numbers by size and names by
    their letters. Rows of a language model have ``TEXT[0]``, a text or a chat (``train.chats``),
    and no label. ``ValueError`` or ``OSError``, one line, for whatever can't be trained on.
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
            f"[task.{name}] metric: f1 is for two classes; found {len(classes)}. Type f1_macro"
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
        if not len(left):
            raise ValueError(
                f"{where}: expected rows to validate on; found none in a share of "
                f"{parts[1]:g} of {len(rows)} rows (of every class one row at least is trained "
                "on): take a larger share, or more rows"
            )
        left.attrs.pop(BLANK, None)  # told once
        return (taken, f"{where} (training rows)"), (left, f"{where} (validation rows)")
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
    if not len(frame):
        raise ValueError(f"{where}: expected rows; found none")
    found = [_composed(str(name)) for name in frame.columns]
    frame = frame.set_axis(found, axis=1)
    text, label = [_composed(name) for name in own.columns(found)], _composed(own.label)
    _check_there(text if own.is_language else [*text, label], found, where)
    result = pd.DataFrame(index=range(1, len(frame) + 1))
    if own.kind == "sft":
        return result.assign(**{TEXT[0]: chat_columns(frame[text], where)})
    for name, column in zip(TEXT, text, strict=False):
        result[name] = _texts(frame[column], where)
    blank = np.logical_and.reduce([result[name].str.strip().eq("") for name in result])
    if own.kind == "causal-lm":
        if blank.all():
            raise ValueError(f"{where}: expected text in {text[0]!r}; found none in any row")
        result.attrs[BLANK] = int(blank.sum())
        return result[~blank]
    if blank.any():
        raise ValueError(
            f"{where}: row {int(blank.argmax()) + 1}: expected text in "
            f"{' or '.join(map(repr, text))}; found none{_others(blank)}. Leave out rows without "
            "text"
        )
    known = frame.attrs.get(CLASS_NAMES, {}).get(label)
    labels = frame[label].set_axis(result.index)
    if not own.is_regression and known is None and _is_ordered(labels):
        known = [str(name) for name in labels.cat.categories]
        labels = labels.cat.codes.astype(object).where(labels.notna(), None)
    if not own.is_regression:
        labels = class_names_of(labels, known, where)
    result = result.assign(label=labels)
    result.attrs[CLASS_NAMES] = known
    return result


def _is_ordered(labels: pd.Series) -> bool:
    """Whether these are pandas' ordered categories, which Parquet keeps."""
    return isinstance(labels.dtype, pd.CategoricalDtype) and bool(labels.cat.ordered)


def _with_numbers(
    rows: pd.DataFrame, own: OwnTask, classes: Sequence[str], where: str
) -> pd.DataFrame:
    if own.is_language:
        return rows.reset_index(drop=True)
    labels = rows["label"]
    numbers = numbered(labels, classes, where) if classes else measured(labels, where)
    return rows.assign(label=numbers).reset_index(drop=True)


def _check_there(columns: Sequence[str], found: Sequence[str], where: str) -> None:
    """``ValueError`` unless each of the columns is there once."""
    for column in columns:
        if found.count(column) != 1:
            word = "no column" if column not in found else f"{found.count(column)} columns"
            raise ValueError(
                f"{where}: expected the columns {', '.join(map(repr, columns))}; found {word} "
                f"{column!r} among {', '.join(map(repr, found))[:300]}"
                f"{_hint(column, columns, found, where)}"
            )


def _hint(column: str, columns: Sequence[str], found: Sequence[str], where: str) -> str:
    """What to type: a name that differs in case or blanks alone; a table that is separated by
    something else, or has no header."""
    near = [name for name in found if folded(name) == folded(column) and name != column]
    if near:
        return f": write {near[0]!r} as it stands there, blanks and case included"
    marks = [
        name
        for mark, name in ((";", "';'"), ("\t", "tabs"), (",", "','"))
        if len(found) == 1 and mark in found[0]
    ]
    if marks:
        return f": are they separated by {marks[0]}? A .csv has ',' or ';', a .tsv tabs"
    if found and not set(columns) & set(found):
        header = "; its first line must hold them" if where.endswith((".csv", ".tsv")) else ""
        return f": give the names of its columns in text{' and label' * (len(columns) > 1)}{header}"
    return ""


def _texts(column: pd.Series, where: str) -> list[str]:
    values = [_text(value) for value in column]
    missing = np.array([value is None for value in values])
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(
            f"{where}: row {row + 1}: expected text in {str(column.name)!r}; found "
            f"{said(column.iloc[row])}{_others(missing)}"
        )
    if (row_number := _not_unicode(values)) is not None:
        raise ValueError(
            f"{where}: row {row_number + 1}: expected text in {str(column.name)!r}; found half of "
            "a surrogate pair, which is not a character"
        )
    return [str(value) for value in values]


def _others(wrong: np.ndarray) -> str:
    """How many rows are wrong beside the first."""
    others = int(wrong.sum()) - 1
    return f" (as in {others} other rows)" if others else ""


def _composed(name: str) -> str:
    """With accents in one character each: macOS writes them apart, and both look the same."""
    return unicodedata.normalize("NFC", name)


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
