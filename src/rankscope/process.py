"""How a command's process starts sooner and stops when it is asked to.

The tricks at the start have their gains in docs/log.md; none changes a result. Beside these,
``linalg`` broadcasts shapes without torch's function, whose first call imports SymPy (1 s in every
worker). Ctrl-C, SIGTERM (batch systems) and SIGHUP (a closed terminal) are treated alike: training
ends between two steps."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


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


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number

    @property
    def status(self) -> int:
        """The exit status of a process that a signal ended, as shells have it."""
        return 128 + self.number


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raises ``Stopped`` when the process is asked to stop, wherever it is; also if a library turns
    that into an error of its own, as transformers does while it imports a model's module."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise Stopped(number)

    with _handled(stop):
        try:
            yield
        except Exception:
            if asked:
                raise Stopped(asked[0]) from None
            raise


@contextlib.contextmanager
def stopping_between_steps() -> Iterator[Callable[[], None]]:
    """Yields a function that raises ``Stopped`` if the process has been asked to stop; called
    between two steps, training can leave a checkpoint. A second request stops it at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise Stopped(number)

    def check() -> None:
        if asked:
            raise Stopped(asked[0])

    with _handled(ask):
        yield check
    check()


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # signal handlers can only be set there
        yield
        return
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, handler)
        for number in _signals()
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup has it ignored, and means it
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _signals() -> list[signal.Signals]:
    """The signals that ask a process to stop, as far as the system has them."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
