"""Where a store is: a folder or a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rankscope.store.storage import LocalStorage, Storage

DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{name}{n}" for name in ("COM", "LPT") for n in range(10)),
}


def storage_at(place: str | Path) -> Storage:
    """The storage in that folder or at that URL."""
    if not str(place).strip():
        raise ValueError(f"{str(place)!r}: expected the path of a store; found none")
    if "\0" in str(place):
        raise ValueError(
            f"{str(place)!r}: expected the path of a store; found a NUL character in it"
        )
    if "://" in str(place) and not str(place).startswith("file://"):
        from rankscope.store.fsspec_storage import FsspecStorage

        return FsspecStorage(str(place))
    return LocalStorage(Path(local_path(str(place))))


def local_path(place: str, *, windows: bool = os.name == "nt") -> str:
    """A path without ``file://``. On ``windows`` also without the slash before a drive's letter
    (``file:///C:/runs``), and ``ValueError`` for a name that Windows takes for something else: a
    device (``con``, ``nul.json``), a stream of another file (``a:b``), one with a blank or a dot at
    its end, which it drops."""
    path = place.removeprefix("file://")
    if not windows:
        return path
    if path != place:
        path = re.sub(r"^/(?=[A-Za-z]:)", "", path)
    for part in re.split(r"[/\\]", re.sub(r"^[A-Za-z]:", "", path)):
        device = part.split(".")[0].rstrip(" ").upper() in DEVICES
        if (
            device
            or re.search(r'[<>:"|?*\x00-\x1f]', part)
            or (part.strip(".") and part[-1] in " .")
        ):
            raise ValueError(
                f"{place!r}: expected a path that Windows can keep; found {part!r} in it. "
                "Name another folder"
            )
    return path
