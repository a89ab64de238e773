"""A table: shown on the page, and written as CSV (all digits) and LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rankscope.analysis.inference import end, without_minus_zero
from rankscope.console import defused
from rankscope.report.latex import to_latex

NOTHING = "–"
FILTERS = {"task": "task", "model": "model", "method": "series", "rank": "rank", "kind": "kind"}


@dataclass(frozen=True)
class Column:
    """A column: the key in the frame, the heading, and how a value is shown (a format, or a
    function).

    ``ends``: the keys of its interval, shown in the same cell. ``printed``: False for columns that
    only the CSV has.
    """

    key: str
    heading: str
    shown: str | Callable[[Any], str] = ""
    ends: tuple[str, str] | None = None
    printed: bool = True

    @property
    def number(self) -> bool:
        """Whether the column holds numbers."""
        return self.shown != ""

    @property
    def keys(self) -> list[str]:
        """Its keys in the frame: the value's, and those of its interval."""
        return [self.key, *(self.ends or ())]

    def text(self, value: Any, low: Any = None, high: Any = None) -> str:
        """A value as printed, with its interval if there is one; a dash if unknown."""
        own = self._one(value)
        if self.ends is None or own == NOTHING or (unknown(low) and unknown(high)):
            return own
        return f"{own} [{self._one(low, end)}, {self._one(high, end)}]"

    def _one(self, value: Any, form: Callable[[Any, str], str] = format) -> str:
        if unknown(value):
            return NOTHING
        if callable(self.shown):
            return self.shown(value)
        if not self.number:
            return str(value)
        shown = self.shown if self.shown.endswith("d") else without_minus_zero(self.shown)
        return form(value, shown).replace("-", "−")


WHERE = (Column("model", "model"), Column("task", "task"))
RANK = Column("rank", "r", ".0f")


def interval_column(key: str, heading: str, shown: str) -> Column:
    """An estimate with its interval, from the frame's columns ``_low`` and ``_high``."""
    return Column(key, heading, shown, ends=(f"{key}_low", f"{key}_high"))


@dataclass(frozen=True)
class Table:
    """Rows with their file name, title and caption, and the columns in the order shown.

    ``searched``: on the page it has a search field, and points of figures link to it.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    searched: bool = False

    @property
    def printed(self) -> list[Column]:
        """The columns of the page and of LaTeX: without those that only the CSV has, without the
        model if there is only one, and without columns of unknown numbers (`said` names them)."""
        return [c for c in self.columns if c.printed and not self._fixed(c) and self._known(c)]

    @property
    def said(self) -> str:
        """The caption, with what `printed` leaves out."""
        fixed = [c for c in self.columns if self._fixed(c)]
        words = [
            f"{c.heading[0].upper()}{c.heading[1:]}: {self.rows[c.key].iloc[0]}." for c in fixed
        ]
        missing = [c.heading for c in self.columns if c.printed and not self._known(c)]
        words += [f"Not known: {'; '.join(missing)}."] if missing else []
        return " ".join([self.caption, *words])

    def _fixed(self, column: Column) -> bool:
        return column.key == "model" and self.rows["model"].nunique(dropna=False) == 1

    def _known(self, column: Column) -> bool:
        return not column.number or self.rows.empty or bool(self.rows[column.key].notna().any())

    def cells(self, most: int | None = None) -> list[list[tuple[str, Any]]]:
        """Per row, each printed cell's text and its value for sorting (None if unknown); the
        first `most` rows."""
        kept = self.rows if most is None else self.rows.iloc[:most]
        lists = [
            [
                (column.text(*values), sortable(values[0]))
                for values in zip(*(kept[key] for key in column.keys), strict=True)
            ]
            for column in self.printed
        ]
        return [list(row) for row in zip(*lists, strict=True)]

    def labels(self, most: int | None = None) -> list[list[tuple[str, str]]]:
        """Per row, the (name, value) pairs for the page's filters, as far as the table has them."""
        kept = self.rows if most is None else self.rows.iloc[:most]
        names = {name: key for name, key in FILTERS.items() if key in kept.columns}
        rows = (
            zip(*(kept[key] for key in names.values()), strict=True) if names else [()] * len(kept)
        )
        return [
            [
                (name, f"{v:g}" if name == "rank" else str(v))
                for name, v in zip(names, row, strict=True)
                if pd.notna(v)
            ]
            for row in rows
        ]

    def to_csv(self, *, raw: bool = False) -> str:
        """Comma-separated, one line of keys, numbers with all their digits, empty where unknown.

        Text that a spreadsheet would run as a formula gets a leading apostrophe, unless `raw`.
        """
        frame = self.rows[list(dict.fromkeys(key for c in self.columns for key in c.keys))]
        if not raw:
            words = frame.select_dtypes(exclude="number").columns
            frame = frame.assign(**{name: frame[name].map(defused) for name in words})
        return frame.to_csv(index=False, lineterminator="\n")

    def to_latex(self) -> str:
        """A booktabs ``tabular`` with caption and label (`latex.to_latex`)."""
        columns = self.printed
        return to_latex(
            self.name,
            f"{self.title}. {self.said}",
            [column.heading for column in columns],
            [column.number for column in columns],
            [[text for text, _ in row] for row in self.cells()],
        )


def unknown(value: Any) -> bool:
    """None, NaN or NA."""
    return value is None or bool(pd.isna(value))


def sortable(value: Any) -> Any:
    """A value that JSON and a browser can sort by; None if it is unknown."""
    if unknown(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def searched_rows(table: Table) -> dict[str, object]:
    """What the page needs to show a long table in parts: the text of every cell, and which
    column is what the filters and the points of figures name."""
    columns = table.printed
    keys = [column.key for column in columns]
    named = {
        "task": "task",
        "model": "model",
        "method": "series",
        "rank": "rank",
        "rate": "learning_rate",
        "seed": "seed",
        "kind": "kind",
        "trial": "trial",
    }
    return {
        "rows": [[text for text, _ in row] for row in table.cells()],
        "columns": {name: keys.index(key) for name, key in named.items() if key in keys},
    }


def is_long(table: Table, most: int = 150) -> bool:
    """Whether the page shows it in parts."""
    return table.searched or len(table.rows) > most
