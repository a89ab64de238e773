"""A TOML file as a table, read within limits: it may come from anywhere."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

_BYTES = 2**20  # of a study file; the largest that ships has 2,000
_LINE = 20_000  # characters: tomllib's time grows with the square of the parts of a.b.c


def read_toml(path: Path) -> str:
    """The text of a file. ``ValueError``, one line, if it is too large or no UTF-8."""
    if (size := path.stat().st_size) > _BYTES:
        raise ValueError(f"{path}: expected at most {_BYTES} bytes of TOML; found {size}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8; found {error}. Save it as UTF-8") from None


def parse_toml(text: str, label: str) -> dict[str, Any]:
    """The table; ``label`` names it in a ``ValueError`` of one line."""
    if (longest := max(map(len, text.split("\n")))) > _LINE:
        raise ValueError(
            f"{label}: expected lines of at most {_LINE} characters; found one of {longest}. Lists "
            "may have several lines"
        )
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{label}: not TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ValueError(f"{label}: not TOML: {error}") from None
