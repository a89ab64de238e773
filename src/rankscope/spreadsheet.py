"""CSV cells that a spreadsheet does not run as formulas."""

from __future__ import annotations

from typing import Any

# Characters that start a formula in spreadsheets (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def defused(value: Any) -> Any:
    """`value`, with a leading apostrophe (which spreadsheets hide) if it is text that a spreadsheet
    would run as a formula. Numbers stay numbers, even as text."""
    if isinstance(value, str) and value.startswith(FORMULA) and not _number(value):
        return f"'{value}"
    return value


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
