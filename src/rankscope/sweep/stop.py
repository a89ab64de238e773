"""Stopping on request: Ctrl-C, SIGTERM (batch systems) and SIGHUP (a closed terminal) are treated
alike, and training ends between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rankscope.system import stop_signals


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
    """Raises ``Stopped`` wherever the process is when it is asked to stop; also where a library
    makes an error of its own of it, as transformers does while it imports a model's module."""
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
        for number in (signal.SIGINT, *stop_signals())
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup has it ignored, and means it
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
