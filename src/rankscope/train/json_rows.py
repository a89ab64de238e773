"""JSON text -> a table: a list of objects, or one object a line."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from rankscope.train.delimited_text import LINE_END, check_columns

_EMPTY = 20  # cells of a table by values in its rows, before it is called one of unlike rows
_SHOWN = 40  # characters of what is wrong that a message shows


def from_json(text: str) -> pd.DataFrame:
    """A row an object; what an object lacks is NaN. ``ValueError``, one line, for anything else."""
    if text.lstrip().startswith("["):
        what, rows = "row", list(enumerate(_parsed(text, "a list of JSON objects"), 1))
    else:
        what, rows = "line", _lines(text)
    for number, row in rows:
        if not isinstance(row, dict):
            found = json.dumps(row)[:_SHOWN]
            raise ValueError(f"{what} {number}: expected a JSON object; found {found}")
    if len(rows) == 1 and all(isinstance(value, dict | list) for value in rows[0][1].values()):
        _refuse_one(rows[0][1])
    names = {name for _, row in rows for name in row}
    check_columns(len(names))
    values = sum(len(row) for _, row in rows)
    if len(names) * len(rows) > max(_EMPTY * values, 10_000_000):
        raise ValueError(
            f"expected objects with the same names; found {len(names)} names in {len(rows)}"
        )
    return pd.DataFrame([row for _, row in rows], dtype=object)


def _lines(text: str) -> list[tuple[int, Any]]:
    lines = [(n, line) for n, line in enumerate(LINE_END.split(text), 1) if line.strip()]
    try:
        return [(n, _line(n, line)) for n, line in lines]
    except ValueError:
        if lines[0][1].strip() != "{":
            raise
    return [(lines[0][0], _parsed(text))]  # one object over several lines


def _line(number: int, line: str) -> Any:
    try:
        return _parsed(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def _parsed(text: str, expected: str = "a JSON object") -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        found = text[error.pos : error.pos + _SHOWN].strip()
        where = f"{place}character {error.colno}, {found!r}" if found else "its end"
        raise ValueError(f"expected {expected}; {error.msg} at {where}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected every name once; found {twice!r} twice")
    return found


def _refuse_one(row: dict[str, Any]) -> None:
    """``ValueError`` for an object of columns, as pandas' ``to_json`` writes by default, and for
    one with rows in an entry. A single chat in a file is neither."""
    rows = {
        name: value
        for name, value in row.items()
        if isinstance(value, dict) or not all(isinstance(v, dict) and "role" in v for v in value)
    }
    if rows:
        raise ValueError(
            f"expected a list of objects, or one object a line; found one object with "
            f"{', '.join(map(repr, rows))[:200]}: write one object for each row, as pandas does by "
            'to_json(file, orient="records", lines=True)'
        )
