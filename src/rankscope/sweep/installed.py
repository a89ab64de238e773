"""Failures that come of code which was changed while a run goes on: an upgrade, or a checkout under
an editable installation. Modules that are imported late then meet others of an earlier version."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import rankscope

BEGUN = time.time()  # what is changed later is not what this process began with
MISMATCH = (ImportError, AttributeError, NameError, SyntaxError, TypeError, KeyError)


def changed_code(error: BaseException, begun: float = BEGUN) -> str | None:
    """One line for an error of two versions' code that met, if a file that it comes from, or one of
    ours, is newer than `begun` (seconds since 1970; by default this process's beginning). Else
    None."""
    if not isinstance(error, MISMATCH):
        return None
    return changed(traceback.format_exception_only(error)[-1].strip(), begun, files=_files(error))


def changed(found: str, begun: float = BEGUN, *, files: Iterable[str] = ()) -> str | None:
    """The same for what was `found`, if one of `files` is newer, or one of ours."""
    ours = (str(path) for path in sorted(Path(rankscope.__path__[0]).rglob("*.py")))
    newer = next((file for file in chain(files, ours) if _written(file) > begun), None)
    if newer is None:
        return None
    return (
        f"{newer}: expected the code that this run began with; found it changed since ({found}). "
        "What had finished is kept. Type the same command again: it goes on with the code as it is "
        "now"
    )


def code() -> str:
    """12 digits of the SHA-256 of our source files: a checkout changes between releases."""
    digest = hashlib.sha256()
    for path in sorted(Path(rankscope.__path__[0]).rglob("*.py")):
        digest.update(path.relative_to(rankscope.__path__[0]).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _files(error: BaseException) -> Iterator[str]:
    """Where the error and its causes come from, the nearest first."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, ImportError):
            package = sys.modules.get((at.name or "").partition(".")[0])
            yield from filter(None, (at.path, getattr(package, "__file__", None)))
        if isinstance(at, SyntaxError) and at.filename:
            yield at.filename
        yield from (frame.filename for frame in reversed(traceback.extract_tb(at.__traceback__)))
        at = at.__cause__ or at.__context__


def _written(file: str) -> float:
    """When the file was last written or put there; 0 if it cannot be seen."""
    try:
        found = os.stat(file)
    except OSError:
        return 0
    return max(found.st_mtime, found.st_ctime)
