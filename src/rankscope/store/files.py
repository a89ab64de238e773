"""JSON as rankscope writes it: with a format number, and refused where it is damaged or newer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rankscope.store.storage import LocalStorage

FORMAT = 1


def dumps(content: dict[str, Any]) -> bytes:
    return (json.dumps({"format": FORMAT, **content}, indent=1, allow_nan=False) + "\n").encode()


def loads(data: bytes, where: str) -> dict[str, Any]:
    """The object in these bytes; ``where`` names the file in errors.

    ``ValueError`` when it is damaged or of a newer rankscope.
    """
    try:
        content = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: expected JSON that rankscope wrote; found damage ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError(f'{where}: expected an object with a "format" number; found none')
    if content["format"] > FORMAT:
        raise ValueError(
            f"{where}: written in format {content['format']}, and this rankscope reads up to {FORMAT}: "
            "pip install --upgrade rankscope"
        )
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """For readers the file is the old one or the new one, never half."""
    LocalStorage(path.parent).write(path.name, dumps(content), durable=False)


def read_json(path: Path) -> dict[str, Any]:
    """The object in that file. ``ValueError`` when it is damaged or of a newer rankscope."""
    return loads(path.read_bytes(), str(path))


def finite(value: Any) -> Any:
    """The value, or None for a float that is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
