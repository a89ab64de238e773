"""Where a store is: a folder or a URL."""

from __future__ import annotations

from pathlib import Path

from rankscope.store.storage import LocalStorage, Storage


def storage_at(place: str | Path) -> Storage:
    """The storage in that folder or at that URL."""
    if not str(place).strip():
        raise ValueError(f"{str(place)!r}: expected the path of a store; found none in it")
    if "\0" in str(place):
        raise ValueError(f"{str(place)!r}: expected the path of a store; found a NUL in it")
    if "://" in str(place) and not str(place).startswith("file://"):
        from rankscope.store.fsspec_storage import FsspecStorage

        return FsspecStorage(str(place))
    return LocalStorage(Path(str(place).removeprefix("file://")))
