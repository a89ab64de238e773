"""A storage behind a URL that fsspec knows: an object store, most often.

Log entries and finished trials never change, so their copies in a local folder, the mirror, never
become stale. Readers call ``fetch`` and then read files below ``root``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankscope.store.storage import LocalStorage, Version
from rankscope.system import cache_dir

MANY = 500  # small files fetched at once


class FsspecStorage:
    """``create`` is exclusive where the backend has conditional writes, as S3 has (If-None-Match).
    Elsewhere fsspec looks first and writes then: one worker at a time is safe, many are not."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise ValueError(
                f"{url}: expected fsspec for a store behind a URL; pip install 'rankscope[s3]'"
            ) from None
        self.url = url.rstrip("/")
        try:
            self.fs, self._path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url}: expected a URL that fsspec can open; {error}") from None
        self.root = _mirrors() / hashlib.sha256(self.url.encode()).hexdigest()[:24]
        self._local = LocalStorage(self.root)
        self._kept: dict[Path, int] = {}

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(self._at(name))

    def exists(self, name: str) -> bool:
        return self.fs.exists(self._at(name))

    def versions(self, names: Sequence[str]) -> list[Version | None]:
        """Size and ETag of these objects; None for what isn't there. One listing, for all of one
        folder are asked for at once."""
        if not names:
            return []
        shared = os.path.commonpath([name.rpartition("/")[0] for name in names])
        try:
            found = self.fs.find(self._at(shared), detail=True)
        except FileNotFoundError:
            found = {}
        known = {
            str(path): Version(int(said["size"]), _stamp(said)) for path, said in found.items()
        }
        return [known.get(self._at(name)) for name in names]

    def names(self, folder: str) -> list[str]:
        try:
            found = self.fs.ls(self._at(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {str(path).rstrip("/").rsplit("/", 1)[-1] for path in found}
        return sorted(
            n for n in names if n and not n.startswith(".") and n != folder.rsplit("/", 1)[-1]
        )

    def create(self, name: str, data: bytes) -> bool:
        """One conditional write. See ``LocalStorage.create``."""
        try:
            self.fs.pipe_file(self._at(name), data, mode="create")
        except FileExistsError:
            return self.read(name) == data
        except OSError as error:
            if (
                error.errno != errno.EINVAL
            ):  # s3fs says so for "412 Precondition Failed" and "409 Conflict"
                raise
            return self.exists(name) and self.read(name) == data
        return True

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """An object is whole or absent, and safe when the call returns, whatever ``durable``
        says."""
        self.fs.pipe_file(self._at(name), data)

    def remove(self, name: str) -> None:
        """From the mirror and from the storage."""
        self._local.remove(name)
        with contextlib.suppress(FileNotFoundError):
            try:
                self.fs.rm(self._at(name), recursive=True)
            except FileNotFoundError:
                raise
            except OSError:  # S3's list of keys to delete is XML, which holds no control characters
                for one in self._below(name):
                    self.fs.rm_file(self._at(one))

    def claim_dir(self, name: str) -> Path:
        return self._local.claim_dir(name)

    def flush(self, name: str) -> None:
        """Uploads what is new or changed in ``claim_dir(name)``, in the order of the names."""
        for path in sorted((self.root / name).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                state = path.stat().st_mtime_ns
                if self._kept.get(path) != state:
                    self.fs.put_file(str(path), self._at(path.relative_to(self.root).as_posix()))
                    self._kept[path] = state

    def take_over(self, source: str, target: str) -> None:
        """Fills a claim's folder with what an earlier one left."""
        names = self._below(source)
        self.fetch(names)
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(self.root / source, self.root / target, dirs_exist_ok=True)

    def move(self, source: str, target: str) -> bool:
        """Copies file by file, ``done.json`` last. Other workers may continue an interrupted
        copy, or copy at the same time."""
        if self.exists(f"{target}/done.json"):
            return False
        names = [name.removeprefix(f"{source}/") for name in self._below(source)]
        if "done.json" not in names:
            return False
        try:
            for name in sorted(names, key="done.json".__eq__):
                self.fs.copy(self._at(f"{source}/{name}"), self._at(f"{target}/{name}"))
        except FileNotFoundError:  # another worker has finished it, and removed the source
            return False
        return True

    def set_aside(self, source: str, target: str) -> None:
        """Copies a file, or all files of a folder, then removes them, here too."""
        with contextlib.suppress(FileNotFoundError):  # another worker does the same
            for name in self._below(source):
                self.fs.copy(self._at(name), self._at(f"{target}{name.removeprefix(source)}"))
        self.remove(source)

    def fetch(self, names: Sequence[str], *, again: bool = False) -> None:
        """Downloads those of these files that exist and are not in the mirror yet (``again``: all
        that exist)."""
        if again:
            for name in names:
                self._local.remove(name)
        missing = [name for name in names if not (self.root / name).exists()]
        for i in range(0, len(missing), MANY):
            part = {self._at(name): name for name in missing[i : i + MANY]}
            found: dict[str, Any] = self.fs.cat(list(part), on_error="return")
            for path, data in found.items():
                if isinstance(data, bytes):
                    self._local.write(part[path], data, durable=False)
                elif not isinstance(data, FileNotFoundError):
                    raise data

    def fetch_below(self, folder: str) -> None:
        """Downloads a folder into the mirror."""
        self.fetch(self._below(folder))

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    def _below(self, folder: str) -> list[str]:
        """The names of all files in a folder and the folders in it; of a file its own."""
        try:
            found = self.fs.find(self._at(folder))
        except FileNotFoundError:
            return []
        return [folder + str(path).removeprefix(self._at(folder)) for path in found]


def _stamp(said: dict[str, Any]) -> str:
    """What changes with an object's content, as its backend names it."""
    return str(
        said.get("ETag") or said.get("etag") or said.get("LastModified") or said.get("created")
    )


def _mirrors() -> Path:
    return cache_dir() / "stores"
