"""Files that are either whole or absent, and the format number that each of them carries."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write, fsync, rename, fsync the folder: after a crash the file is the old one or the new one, never half."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **content}, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The object in that file. ``ValueError`` when it is damaged or of a newer rankscope."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON that rankscope wrote; found damage ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError(f'{path}: expected an object with a "format" number; found none')
    if content["format"] > FORMAT:
        raise ValueError(
            f"{path}: written in format {content['format']}, and this rankscope reads up to {FORMAT}: "
            "pip install --upgrade rankscope"
        )
    return content
