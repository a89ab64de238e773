"""The files of a store, on a disk, and the few operations that all of the store is built on.

A name is a path relative to the store, with slashes. ``create`` is the only operation that
decides between workers: of all that create the same name exactly one succeeds, and no reader sees
a part of the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

from rankscope.system import may_read, naming, read_file, sync


class Version(NamedTuple):
    """The version of a file. It changes with the content, unless the disk is at fault."""

    size: int  # bytes
    stamp: int | str  # time of its last change, in nanoseconds; an object's ETag


# of a file that this user may not read, or whose folder denies to say whether it is there
DENIED = Version(-1, "denied")


class Storage(Protocol):
    """The operations. ``root`` is a local folder: the store itself, or a copy of the files that
    were fetched."""

    root: Path

    def read(self, name: str) -> bytes: ...
    def exists(self, name: str) -> bool: ...
    def versions(self, names: Sequence[str]) -> list[Version | None]: ...
    def names(self, folder: str) -> list[str]: ...
    def create(self, name: str, data: bytes) -> bool: ...
    def write(self, name: str, data: bytes, *, durable: bool = True) -> None: ...
    def remove(self, name: str) -> None: ...
    def claim_dir(self, name: str) -> Path: ...
    def take_over(self, source: str, target: str) -> None: ...
    def flush(self, name: str) -> None: ...
    def move(self, source: str, target: str) -> bool: ...
    def set_aside(self, source: str, target: str) -> None: ...
    def fetch(self, names: Sequence[str], *, again: bool = False) -> None: ...
    def fetch_below(self, folder: str) -> None: ...


LONGEST = 200  # bytes of a name, of the 255 that most file systems allow
HARMED = "harmed"  # folder for damaged or unexpected files; never read


def free_name(storage: Storage, name: str) -> str:
    """A free name in ``harmed/`` for that file or folder: its own with a number, shortened if it is
    too long for one."""
    last, taken = name.rsplit("/", 1)[-1], set(storage.names(HARMED))
    if len(os.fsencode(last)) > LONGEST:
        last = f"{last[:40]}-{hashlib.sha256(os.fsencode(last)).hexdigest()[:12]}"
    number = next(n for n in range(1, len(taken) + 2) if f"{last}-{n}" not in taken)
    return f"{HARMED}/{last}-{number}"


class LocalStorage:
    """A folder on a disk that all workers see. Needs hard links, as every file system for Unix has
    them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes:
        """``NotAFile`` where something else has that name."""
        return read_file(self.root / name)

    def exists(self, name: str) -> bool:
        """Whether anything has that name, be it a link to nowhere."""
        return os.path.lexists(self.root / name)

    def versions(self, names: Sequence[str]) -> list[Version | None]:
        """Size and time of the last change of these files; None if it is not a file, ``DENIED``
        if this user may not read it."""
        return [_version(f"{self.root}/{name}") for name in names]

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder, without hidden files; nothing if it isn't there."""
        try:
            return sorted(n for n in os.listdir(self.root / folder) if not n.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            if error.errno == errno.ELOOP:
                return []
            raise

    def create(self, name: str, data: bytes) -> bool:
        """Makes that file, whole and on disk, unless it is there. -> whether this call made it

        A link to a complete draft: unlike O_EXCL, it never shows a file that is still being
        written. ``data`` must be like no other's: found there, it is taken for ours (a network may
        lose the answer to a request that succeeded).
        """
        path = self.root / name
        draft = self._draft(path, data)
        try:
            os.link(draft, path)
        except FileExistsError:
            with contextlib.suppress(OSError):  # a folder, a link that leads nowhere
                return read_file(path) == data
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise OSError(
                    f"{self.root}: expected a file system with hard links, which claims rest on; "
                    f"found one without ({error.strerror}). Name a --store elsewhere"
                ) from None
            raise
        finally:
            draft.unlink(missing_ok=True)
        sync(path.parent)
        return True

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Makes or replaces that file: after a crash it is the old one or the new one, never
        half."""
        path = self.root / name
        draft = self._draft(path, data, durable=durable)
        try:
            if path.is_dir() and not path.is_symlink():
                self.set_aside(name, free_name(self, name))
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)

    def remove(self, name: str) -> None:
        """A file or a folder with all that is in it; nothing happens if it isn't there."""
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def claim_dir(self, name: str) -> Path:
        """A local folder to write in, new and empty; ``flush`` makes what is written there part of
        the storage."""
        path = self.root / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def take_over(self, source: str, target: str) -> None:
        """Moves a folder to a name that is new. A previous owner that is still writing loses those
        writes."""
        if (self.root / source).is_dir():
            shutil.rmtree(self.root / target, ignore_errors=True)
            os.rename(self.root / source, self.root / target)

    def flush(self, name: str) -> None:
        """Everything below ``claim_dir(name)`` is on disk when this returns."""
        paths = [
            [Path(folder), *(Path(folder) / file for file in files)]
            for folder, _, files in os.walk(self.root / name)
        ]
        with ThreadPoolExecutor(
            8
        ) as pool:  # together they share the journal's commits: several times faster
            list(pool.map(sync, [path for group in paths for path in group]))

    def move(self, source: str, target: str) -> bool:
        """Renames a folder atomically, unless the target is not empty. -> False: it is not, or
        there is no source"""
        path = self.root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self.root / source, path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                return False
            raise
        sync(path.parent)
        return True

    def set_aside(self, source: str, target: str) -> None:
        """Moves a file or a folder to a name that is free; nothing happens if another process was
        first."""
        path = self.root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.root / source, path)

    def fetch(self, names: Sequence[str], *, again: bool = False) -> None:
        """Everything is here already."""

    def fetch_below(self, folder: str) -> None:
        """Everything is here already."""

    def _draft(self, path: Path, data: bytes, *, durable: bool = True) -> Path:
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with naming(path), draft.open("xb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return draft


def _version(path: str) -> Version | None:
    """The version of a file; ``path`` is a string, since there may be very many."""
    try:
        seen = os.stat(path)
    except PermissionError:
        return DENIED
    except OSError:
        return None
    if not stat.S_ISREG(seen.st_mode):
        return None
    if seen.st_mode & 0o444 != 0o444 and not may_read(path):
        return DENIED
    return Version(seen.st_size, seen.st_mtime_ns)
