"""Comma-, semicolon- or tab-separated text -> a table of text columns.

The standard library's ``csv`` reads it, strictly: a malformed field is an error that names the
line, never a guess.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

LONGEST_LINE = 10_000_000  # characters: an example of a whole book has 2 million
LINE_END = re.compile(r"\r\n|\n|\r")  # not U+2028 and its kind, which stand inside texts
_COLUMNS = 10_000
_SHOWN = 60  # characters of a wrong line that a message shows


def from_text(text: str, *, separator: str) -> pd.DataFrame:
    """Every value is text; a row that is too short lacks its last ones (None).

    ``separator`` "," is what spreadsheets write: semicolons or tabs, if the first line has no
    comma. ``text`` has a line that is not blank; blank ones are skipped. ``ValueError``, one line,
    where a row is longer than the first or a quotation mark does not belong to a whole field.
    """
    separator = _found_in_header(text) if separator == "," else separator
    quoted = separator != "\t" or is_quoted(text)
    limit = csv.field_size_limit(LONGEST_LINE)
    try:
        rows = _records(text, separator, quoted)
        _, names = next(rows)
        check_columns(len(names))
        columns: list[list[str | None]] = [[] for _ in names]
        for line, row in rows:
            if len(row) > len(names):
                raise ValueError(
                    f"line {line}: expected as many fields as its first line has, {len(names)}; "
                    f"found {len(row)} in {separator.join(row)[:_SHOWN]!r}"
                    + _advice(separator, quoted)
                )
            for column, value in zip(columns, row, strict=False):
                column.append(value)
            for column in columns[len(row) :]:
                column.append(None)
    finally:
        csv.field_size_limit(limit)
    frame = pd.DataFrame(dict(enumerate(columns)), dtype=object)
    frame.columns = pd.Index(names)
    return frame


def check_columns(count: int) -> None:
    """``ValueError`` for more than any table has."""
    if count > _COLUMNS:
        raise ValueError(f"expected at most {_COLUMNS} columns; found {count}")


def _found_in_header(text: str) -> str:
    header = next(line for line in io.StringIO(text, newline="") if line.strip())
    return next((mark for mark in ",;\t" if mark in header), ",")


def _records(text: str, separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, and the line on which each begins."""
    lines = io.StringIO(text, newline="")  # line ends inside a field stay as they are
    how: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader, start = csv.reader(lines, delimiter=separator, quoting=how, strict=True), 1
    try:
        while (row := next(reader, None)) is not None:
            if row and (len(row) > 1 or row[0].strip()):
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        why = str(error)
        if "unexpected end" in why:
            why = "its quotation mark is never closed"
        elif "expected after" in why:
            why = "a field goes on behind its closing quotation mark: a mark inside is doubled"
        raise ValueError(f"line {start}: expected whole fields; {why}") from None


def _advice(separator: str, quoted: bool) -> str:
    if not quoted:
        return ""
    mark = {"\t": "a tab", ";": "a semicolon"}.get(separator, "a comma")
    return f': a text with {mark} stands in "quotation marks"'


# Fields: quoted ones, in which two marks are one, and plain ones without any.
_WELL_QUOTED = re.compile(r'(?:(?:"(?:[^"]|"")*+"|[^"\t\r\n]*+)(?:[\t\r\n]|\Z))*+')


def is_quoted(text: str) -> bool:
    """Whether quotation marks in tab-separated text enclose fields, or are characters (GLUE's).

    They enclose fields if each belongs to a completely quoted field: programs that quote do so in
    every field with a mark in it, and double that mark.
    """
    return '"' in text and _WELL_QUOTED.fullmatch(text) is not None
