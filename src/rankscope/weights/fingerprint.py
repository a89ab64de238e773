"""Identifies a base model: by a digest of its files, or by its commit on the hub."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from rankscope.weights.hub import place

BLOCK = 1 << 22  # bytes read at once


def fingerprint(model: str | Path) -> str:
    """SHA-256 of a local folder's configuration and weights; the commit of a hub model."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return of_folder(folder)
    found = place(model).find("config.json")  # the cache keeps a file under snapshots/<commit>/
    if found is None:
        raise ValueError(f"{model}: expected a folder or hub id with config.json; found none")
    return found.parent.name


def of_folder(folder: Path) -> str:
    """SHA-256 of the configuration and the weights in that folder."""
    suffixes = (".safetensors", ".bin")
    files = sorted(p for p in folder.iterdir() if p.suffix in suffixes or p.name == "config.json")
    seen = ((p, p.stat()) for p in files)
    return _of_files(tuple((str(p), stat.st_size, stat.st_mtime_ns) for p, stat in seen))


@lru_cache(maxsize=16)  # a base may have many gigabytes, and is asked for once per adapter
def _of_files(seen: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in seen:
        digest.update(Path(path).name.encode())
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
