"""Makes the folder of a result, whole or not at all, and never over another one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def new_folder(to: str | Path, source: str | Path) -> Path:
    """The path of a new folder ``to``. ``ValueError``, one line, if it exists, has no parent
    folder, or lies inside ``source``."""
    place = Path(to).expanduser()
    if not str(to) or "\0" in str(to):
        raise ValueError(
            f"{str(to)!r}: expected a folder's name to make; found none that can be one."
        )
    if os.path.lexists(place):
        raise ValueError(f"{to}: expected a folder that is not there yet; found one. Name another.")
    parent = place.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"{to}: expected a folder {parent} to make it in; found none.")
    own = Path(source).expanduser()
    if own.is_dir() and parent.resolve().is_relative_to(own.resolve()):
        raise ValueError(f"{to}: expected a folder outside {source}; found one inside.")
    return place


def written_whole(place: Path, write: Callable[[Path], None]) -> None:
    """Makes the folder ``place`` with all that ``write`` puts into it, or not at all."""
    parent = place.absolute().parent
    partial = Path(tempfile.mkdtemp(dir=parent, prefix=f".{place.name[:40]}."))
    try:
        write(partial)
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o777 & ~mask)
        if os.path.lexists(place):
            raise ValueError(f"{place}: expected no such folder; one appeared meanwhile.")
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, one entry and one list item per line: faster than ``indent`` for thousands of
    items. NaN is an error, as JSON has none."""
    entries = [f"{json.dumps(name)}: {_lines(value)}" for name, value in content.items()]
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")


def _lines(value: Any) -> str:
    if not (isinstance(value, list) and value):
        return json.dumps(value, allow_nan=False)
    return "[\n " + ",\n ".join(json.dumps(one, allow_nan=False) for one in value) + "\n]"
