"""Memory that the C library keeps: batches change their length at every step, and leave the heap in pieces."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Gives pages that nothing uses back to the system, where there is glibc; without it packs of all-MiniLM on MRPC grew to
    four times what was alive (docs/log.md). Takes milliseconds, and the pages' next use a page fault each."""
    _malloc_trim()(0)


@cache
def _malloc_trim() -> Callable[[int], int]:
    if sys.platform == "linux":
        try:
            return ctypes.CDLL(None).malloc_trim
        except AttributeError:  # musl
            pass
    return lambda keep: 0
