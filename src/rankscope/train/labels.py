"""A column of labels -> names of classes, and their numbers; or the numbers of a regression."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from rankscope.study.own_task import OwnTask

MOST_CLASSES = 10_000
LONGEST_NAME = 200
# with more classes than this each needs two rows on average; else the labels are not classes
SELDOM = 50
_SHOWN = 40  # characters of a value that a message shows
_ROUNDED = 1e-3  # of the labels' standard deviation: what rounding to float32 may change
# what programs write for a missing number
_NO_NUMBER = {"none", "null", "na", "n/a", "#n/a", "<na>", "nat", "?", "-", "inf", "-inf"}
_INTEGER = re.compile(r"[+-]?\d{1,100}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def class_names_of(column: pd.Series, known: Sequence[str] | None, where: str) -> pd.Series:
    """The class of every row by its name: text as it is, whole numbers without a decimal point.

    ``known`` are the names that a ``datasets`` data set has for the numbers 0, 1, and so on.
    ``ValueError`` for a label that is missing or can't name a class.
    """
    found = [_text(value) for value in column]
    if None in found:
        row, missing = found.index(None), {"none", "'nan'"}
        what = said(column.iloc[row])
        advice = ": leave out rows without one" if what.lower() in missing else ""
        raise ValueError(f"{where}: row {row + 1}: expected a label; found {what}{advice}")
    labels = [str(label) for label in found]
    if known is not None:
        odd = next((i for i, label in enumerate(labels) if not _is_below(label, len(known))), None)
        if odd is not None:
            unlabelled = ": leave out rows without a label" if labels[odd] == "-1" else ""
            raise ValueError(
                f"{where}: row {odd + 1}: expected a label from 0 to {len(known) - 1}; found "
                f"{labels[odd]}{unlabelled}"
            )
        labels = [known[int(label)] for label in labels]
    elif all(map(_is_whole, labels)) and not all(map(_INTEGER.fullmatch, labels)):
        labels = [str(int(Decimal(label))) for label in labels]  # 1.0 and 2.0
    if (count := len(set(labels))) > MOST_CLASSES:  # before rows are drawn of each
        raise ValueError(
            f"{where}: expected at most {MOST_CLASSES} classes; found {count} in {len(labels)} rows"
        )
    return pd.Series(labels, index=column.index, dtype=object)


def _text(value: Any) -> str | None:
    """None for a missing value, and for what is neither text nor a number."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal) and value == value // 1:
        value = int(value)
    if not isinstance(value, str | int | float | Decimal):
        return None
    return None if str(value).strip().lower() in ("", "nan") else str(value)


def said(value: Any) -> str:
    """A value of a file, in a message."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list):
        return f"a list, {str(value)[:_SHOWN]}"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, value))[:_SHOWN]}"
    missing = value is None or value is pd.NA or value is pd.NaT or value != value  # NaN
    return "none" if missing or not str(value).strip() else repr(str(value)[:_SHOWN])


def folded(name: str) -> str:
    """Equal for names that look alike: without case, outer blanks and ways to write accents."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _is_below(label: str, count: int) -> bool:
    return _INTEGER.fullmatch(label) is not None and 0 <= int(label) < count


def _is_whole(label: str) -> bool:
    return _NUMBER.fullmatch(label) is not None and float(label).is_integer()


def classes_of(
    labels: pd.Series, own: OwnTask, known: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """The classes in order: the study's, else the data set's, else whole numbers by size and names
    in alphabetical order. ``ValueError`` if the labels are not classes."""
    found = set(labels)
    if own.labels is not None:
        return tuple(str(label) for label in own.labels)
    if known is not None:
        return tuple(known)
    _check_numbers(labels, where)
    longest = max(found, key=len)
    if len(longest) > LONGEST_NAME:
        raise ValueError(
            f"{where}: expected names of classes in {own.label!r}, {LONGEST_NAME} characters at "
            f"most; found {longest[:40]!r} and {len(longest) - 40} more"
        )
    broken = [label for label in found if not _INTEGER.fullmatch(label)]
    if broken and all(map(_NUMBER.fullmatch, found)):
        raise ValueError(
            f"{where}: expected classes in {own.label!r}; found numbers such as {min(broken)}: say "
            'kind = "regression"'
        )
    if len(found) > MOST_CLASSES or (len(found) > SELDOM and 2 * len(found) > len(labels)):
        raise ValueError(
            f"{where}: expected classes in {own.label!r} (at most {MOST_CLASSES}, two rows each on "
            f"average); found {len(found)} in {len(labels)} rows"
        )
    alike = sorted(found, key=lambda label: (_likeness(label), label))
    for one, other in itertools.pairwise(alike):
        if _likeness(one) == _likeness(other):
            raise ValueError(
                f"{where}: labels {one!r} and {other!r} differ by case, blanks or zeros alone: "
                "write them alike, or name all classes in labels"
            )
    return tuple(sorted(found) if broken else sorted(found, key=lambda label: (int(label), label)))


def _likeness(label: str) -> str:
    return str(int(label)) if _INTEGER.fullmatch(label) else folded(label)


def _check_numbers(labels: pd.Series, where: str) -> None:
    """``ValueError`` for numbers with marks of missing values among them."""
    absent = labels.str.strip().str.lower().isin(_NO_NUMBER).to_numpy()
    if absent.any() and not absent.all() and all(map(_NUMBER.fullmatch, labels[~absent])):
        row = int(absent.argmax())
        raise ValueError(
            f"{where}: row {labels.index[row]}: expected a number as label, as in other rows; "
            f"found {labels.iloc[row]!r}: leave out rows without one, or name all classes in labels"
        )


def numbered(labels: pd.Series, classes: Sequence[str], where: str) -> pd.Series:
    """The classes by number (int64). ``ValueError`` for one that is not among them, or where all
    rows have the same one."""
    numbers = labels.map({name: number for number, name in enumerate(classes)})
    odd = numbers.isna().to_numpy()
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(
            f"{where}: row {labels.index[row]}: expected one of the labels "
            f"{', '.join(classes)[:200]}; found {labels.iloc[row]!r}"
        )
    if numbers.nunique() == 1:
        raise ValueError(
            f"{where}: expected at least two classes; all {len(labels)} rows have "
            f"{labels.iloc[0]!r}"
        )
    return numbers.astype("int64")


def measured(column: pd.Series, where: str) -> pd.Series:
    """The numbers of a regression (float32). ``ValueError`` if one is not a number, if all are
    equal, or if float32 would round their differences away."""
    is_time = pd.api.types.is_datetime64_any_dtype(column)
    found = column.astype(object)
    exact = pd.to_numeric(found.astype(str) if is_time else found, errors="coerce").astype(float)
    with np.errstate(over="ignore"):
        numbers = exact.astype("float32")
    odd = ~np.isfinite(numbers.to_numpy())
    if odd.any():
        row = int(odd.argmax())
        value = column.iloc[row]
        comma = re.fullmatch(r"\s*[+-]?\d+,\d+\s*", str(value))
        raise ValueError(
            f"{where}: row {column.index[row]}: expected a finite number as label; found "
            f"{said(value)}" + (": write decimals with a point" if comma else "")
        )
    if exact.nunique() == 1:
        raise ValueError(
            f"{where}: expected labels that differ; all {len(exact)} rows have {exact.iloc[0]:g}"
        )
    if (numbers - exact).abs().max() > _ROUNDED * exact.std(ddof=0):
        raise ValueError(
            f"{where}: expected labels whose differences float32 holds; found {exact.min():.12g} "
            f"to {exact.max():.12g}: subtract their mean"
        )
    return numbers
