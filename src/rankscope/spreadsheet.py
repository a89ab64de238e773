"""CSV that a spreadsheet shows and does not run."""

from __future__ import annotations

from typing import Any

# What spreadsheets take for the beginning of a formula (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def defused(value: Any) -> Any:
    """`value` as it is, unless it is text that a spreadsheet would run as a formula: then with an
    apostrophe before it, which spreadsheets do not show. Numbers stay numbers, also as text."""
    if isinstance(value, str) and value.startswith(FORMULA) and not _number(value):
        return f"'{value}"
    return value


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
