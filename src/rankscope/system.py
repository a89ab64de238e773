"""What differs between systems: every call that only some of them have, and what is done
elsewhere. Imports nothing of ours.

Tested on Linux, and with these calls taken away (tests/test_system.py); macOS and Windows have the
fallbacks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import signal
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ASSUMED_MEMORY = 4 * 2**30  # bytes free, where the system does not say


def cores() -> int:
    """That this process may run on; all of the machine's where that is not known."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that nobody uses; all of the machine's where that is not known."""
    with contextlib.suppress(OSError, StopIteration, ValueError):  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")
        )
    with contextlib.suppress(AttributeError, OSError, ValueError):  # macOS
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ASSUMED_MEMORY


def may_have_gpu() -> bool:
    """Whether a GPU that torch calls "cuda" can be here: on Linux its driver has a device file."""
    if sys.platform == "linux":
        drivers = ("nvidiactl", "nvidia0", "nvhost-gpu", "nvgpu", "kfd", "dxg")
        return any(Path("/dev", name).exists() for name in drivers)
    return sys.platform != "darwin"


@functools.cache
def boot() -> str | None:
    """What tells this start of this machine from all others; processes with the same one share a
    kernel. None where it is not known, or where a lock tells nothing."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def lock(file: IO[Any]) -> None:
    """Locks an open file until it is closed or its process dies, where there are such locks."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool | None:
    """Whether a process that lives has locked that file; None: not known."""
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
    """A folder for short-lived files that all of this user's processes here find, and nobody else
    can write in: below the temporary folder, unless somebody else was there first."""
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
    )  # others can't see who lives here: heartbeats say it


def is_ours(place: Path) -> bool:
    """Whether that folder is this user's, and nobody else may write in it."""
    found = place.lstat()
    if not place.is_dir() or place.is_symlink():
        return False
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def cache_dir() -> Path:
    """``$RANKSCOPE_CACHE``, by default ``~/.cache/rankscope``."""
    return Path(os.environ.get("RANKSCOPE_CACHE", "~/.cache/rankscope")).expanduser()


def own_cache(name: str) -> Path | None:
    """A folder of that name in the cache, in which nobody else can write; None where there can be
    none."""
    folder = cache_dir() / name
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_ours(folder):
            return folder
    return None


def sync(path: Path) -> None:
    """fsync of a file, or of a folder where the system knows that."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY if path.is_dir() or os.name == "posix" else os.O_RDWR
        )
    except PermissionError:  # a folder on Windows
        return
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)  # some file systems know no fsync of a folder
    finally:
        os.close(descriptor)


class NotAFile(OSError):
    """Something else has a file's name: a folder, a pipe, a link to itself or to nowhere."""


def read_file(path: str | Path) -> bytes:
    """What is in a regular file. ``NotAFile`` where its name is something else's, which may be a
    pipe that would keep a reader waiting; ``FileNotFoundError`` where nothing has it."""
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


def stop_signals() -> list[signal.Signals]:
    """Those that ask a process to end, beside Ctrl-C: a batch system's, and a closed terminal's."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def apart() -> dict[str, Any]:
    """Arguments of ``subprocess.Popen``: Ctrl-C reaches the driver alone, which passes it on."""
    if hasattr(os, "setsid"):
        return {"start_new_session": True}
    import subprocess

    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


@functools.cache
def malloc_trim() -> Callable[[int], int]:
    """glibc's: gives pages that nothing uses back to the system. Elsewhere a function that does
    nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # musl
            return ctypes.CDLL(None).malloc_trim
    return lambda keep: 0
