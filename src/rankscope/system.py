"""Differences between operating systems: every call that only some have, with a fallback.

Tested on Linux, and there with these calls removed (tests/test_system.py); macOS and Windows use
the fallbacks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ASSUMED_MEMORY = 4 * 2**30  # free bytes if the system does not say


def cores() -> int:
    """The cores that this process may use; all of the machine's if that is unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int:
    """The free bytes of memory; all of the machine's if that is unknown."""
    with contextlib.suppress(OSError, StopIteration, ValueError):  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")
        )
    with contextlib.suppress(AttributeError, OSError, ValueError):  # macOS
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ASSUMED_MEMORY


def may_have_gpu() -> bool:
    """Whether there may be a GPU that torch calls "cuda": on Linux its driver has a device file."""
    if sys.platform == "linux":
        drivers = ("nvidiactl", "nvidia0", "nvhost-gpu", "nvgpu", "kfd", "dxg")
        return any(Path("/dev", name).exists() for name in drivers)
    return sys.platform != "darwin"


def may_have_mps(platform: str = sys.platform) -> bool:
    """Whether there may be a GPU that torch calls "mps", and its use was not declined."""
    return platform == "darwin" and os.environ.get("RANKSCOPE_DEVICE") != "cpu"


@functools.cache
def boot() -> str | None:
    """An id of this boot of this machine; processes with equal ids share a kernel. None if unknown,
    or if file locks are not available."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def lock(file: IO[Any]) -> None:
    """Locks an open file until it is closed or its process dies, if the system can."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool | None:
    """Whether a living process has locked that file; None if unknown."""
    if fcntl is None:
        return None
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


@functools.cache
def private_dir() -> Path:
    """A folder for short-lived files that this user's processes share and others cannot write to:
    below the temporary folder, unless another user has taken the name."""
    user = (
        os.getuid()
        if hasattr(os, "getuid")
        else uuid.uuid5(uuid.NAMESPACE_DNS, str(Path.home())).hex[:12]
    )
    for place in (Path(tempfile.gettempdir()) / f"rankscope-{user}", cache_dir() / "locks"):
        with contextlib.suppress(OSError):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_ours(place):
                return place
    return Path(
        tempfile.mkdtemp(prefix="rankscope-")
    )  # other processes cannot find it: heartbeats are used instead


def is_ours(place: Path) -> bool:
    """Whether that folder belongs to this user and others cannot write to it."""
    found = place.lstat()
    if not place.is_dir() or place.is_symlink():
        return False
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def cache_dir() -> Path:
    """``$RANKSCOPE_CACHE``, by default ``~/.cache/rankscope``."""
    return Path(os.environ.get("RANKSCOPE_CACHE", "~/.cache/rankscope")).expanduser()


def own_cache(name: str) -> Path | None:
    """A folder of that name in the cache that others cannot write to; None if there is none."""
    folder = cache_dir() / name
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_ours(folder):
            return folder
    return None


def sync(path: Path) -> None:
    """fsync of a file, or of a folder if the system supports it."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY if path.is_dir() or os.name == "posix" else os.O_RDWR
        )
    except PermissionError:  # a folder on Windows
        return
    try:
        with contextlib.suppress(OSError) if path.is_dir() else naming(path):
            os.fsync(descriptor)  # some file systems cannot fsync a folder
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An ``OSError`` inside names this file: a write to a full disk says no name, a draft its
    own."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


class NotAFile(OSError):
    """The path is not a regular file: a folder, a pipe, a link to itself or to nothing."""


def read_file(path: str | Path) -> bytes:
    """The content of a regular file. ``NotAFile`` if the path is something else, such as a pipe
    that would block; ``FileNotFoundError`` if there is nothing."""
    mode = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, mode), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NotAFile(f"{path}: expected a file; found a folder or a pipe")
            return file.read()
    except FileNotFoundError:
        if os.path.islink(path):
            raise NotAFile(f"{path}: expected a file; found a link to nothing") from None
        raise
    except IsADirectoryError:  # open() of its descriptor
        raise NotAFile(f"{path}: expected a file; found a folder") from None
    except OSError as error:
        if error.errno == errno.ELOOP and not os.path.islink(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
        if error.errno == errno.ELOOP:
            raise NotAFile(f"{path}: expected a file; found a link to itself") from None
        if error.errno == errno.ENXIO:
            raise NotAFile(f"{path}: expected a file; found a socket") from None
        raise


def may_read(path: str) -> bool:
    """Whether this user may open that file, without opening it."""
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def apart() -> dict[str, Any]:
    """Arguments of ``subprocess.Popen``: Ctrl-C reaches only the driver, which passes it on."""
    if hasattr(os, "setsid"):
        return {"start_new_session": True}
    import subprocess

    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


@functools.cache
def malloc_trim() -> Callable[[int], int]:
    """glibc's malloc_trim, which returns unused pages to the system; elsewhere a function that does
    nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # musl
            return ctypes.CDLL(None).malloc_trim
    return lambda keep: 0
