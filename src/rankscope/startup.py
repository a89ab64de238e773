"""Tricks that make a command start and end sooner, each with its gain (docs/log.md). None changes a
result.

Beside these: ``linalg`` broadcasts shapes without torch's function, whose first call imports
SymPy (1 s in every worker).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Turns off garbage collection: during imports, which create many objects and drop none, it
    takes a quarter of the time (1.4 of 5.5 s of a plan). What they have created is never looked at
    again: the first full collection would else scan 500,000 objects, in a worker in the midst of
    its first pack (0.2 to 0.3 s)."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def end_at_once() -> None:
    """Freezes objects at exit; else Python scans all modules again before it ends (1 s)."""
    atexit.register(gc.freeze)


def with_large_pages() -> None:
    """Asks torch, before its first tensor, for pages of 2 MB under large tensors, where Linux gives
    them on request: a new tensor of 64 MB is written in half the time."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
