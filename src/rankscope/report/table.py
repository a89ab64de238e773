"""A table: shown on the page, and written as CSV (all digits) and LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

NOTHING = "–"
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "Δ": r"$\Delta$",
    "–": "--",
    "−": "$-$",
    "α": r"$\alpha$",
    "√": r"$\surd$",
    "×": r"$\times$",
    "σ": r"$\sigma$",
    "·": r"$\cdot$",
}


@dataclass(frozen=True)
class Column:
    """A column: the key in the frame, the heading, and how a value is shown (a format, or a
    function)."""

    key: str
    heading: str
    shown: str | Callable[[Any], str] = ""

    @property
    def number(self) -> bool:
        """Whether the column holds numbers."""
        return self.shown != ""

    def text(self, value: Any) -> str:
        """A value as it is printed; what is unknown is a dash."""
        if value is None or pd.isna(value):
            return NOTHING
        if callable(self.shown):
            return self.shown(value)
        return format(value, self.shown).replace("-", "−") if self.number else str(value)


WHERE = (Column("model", "model"), Column("task", "task"))
RANK = Column("rank", "r", ".0f")


def interval_columns(key: str, heading: str, shown: str) -> tuple[Column, Column, Column]:
    """An estimate and the ends of its interval."""
    ends = (Column(f"{key}_low", "from", shown), Column(f"{key}_high", "to", shown))
    return (Column(key, heading, shown), *ends)


@dataclass(frozen=True)
class Table:
    """Rows with their file name, title and caption, and the columns in the order shown."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame

    def cells(self, most: int | None = None) -> list[list[tuple[str, Any]]]:
        """Per row, each cell's text and its value for sorting (None where unknown); the first
        `most` rows."""
        kept = self.rows if most is None else self.rows.iloc[:most]
        lists = [
            [(column.text(v), _sortable(v)) for v in kept[column.key]] for column in self.columns
        ]
        return [list(row) for row in zip(*lists, strict=True)]

    def labels(self, most: int | None = None) -> list[list[tuple[str, str]]]:
        """Per row, what the filters of the page compare: (name, value), where the table has it."""
        kept = self.rows if most is None else self.rows.iloc[:most]
        names = {
            "task": "task",
            "model": "model",
            "method": "series",
            "rank": "rank",
            "kind": "kind",
        }
        names = {name: key for name, key in names.items() if key in kept.columns}
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

    def to_csv(self) -> str:
        """Comma-separated, one line of keys, numbers with all their digits, empty where unknown."""
        return self.rows[[column.key for column in self.columns]].to_csv(
            index=False, lineterminator="\n"
        )

    def to_latex(self) -> str:
        """A booktabs ``tabular`` in a ``table`` with caption and label, every text escaped."""
        place = "".join("r" if column.number else "l" for column in self.columns)
        head = " & ".join(latex(column.heading) for column in self.columns)
        lines = [" & ".join(latex(text) for text, _ in row) + r" \\" for row in self.cells()]
        parts = [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{latex(self.title)}. {latex(self.caption)}}}",
            rf"\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{{place}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(parts) + "\n"


def latex(text: str) -> str:
    """`text` with everything that LaTeX would read as a command escaped."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _sortable(value: Any) -> Any:
    if value is None or pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
