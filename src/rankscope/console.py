"""Terminal output: a progress bar with the time left, messages of one line, tables; and text from
untrusted files made safe for a terminal or a spreadsheet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

EVERY = 30.0  # seconds between two lines
# Characters that start a formula in spreadsheets (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class _Lines:
    """Prints progress and the time left, a line every half minute. The pace is counted from the
    first advance on: imports and models that are loaded come before it."""

    def __init__(
        self, what: str, total: float | None, console: Console, clock: Callable[[], float]
    ) -> None:
        self.what, self.total, self.console, self.clock = what, total, console, clock
        self.said = clock()
        self.done = 0.0
        self.first: tuple[float, float] | None = None  # the time and what was done then

    def __call__(self, amount: float) -> None:
        self.done += amount
        now = self.clock()
        self.first = self.first or (now, self.done)
        if now - self.said > EVERY and self.total and self.done:
            self.said = now
            spent, gained = now - self.first[0], self.done - self.first[1]
            left = f", {duration(spent * (self.total - self.done) / gained)} left" if gained else ""
            self.console.print(f"{self.what}: {self.done / self.total:.0%}{left}", highlight=False)


@contextlib.contextmanager
def bar(
    what: str,
    *,
    total: float | None,
    quiet: bool = False,
    announce: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[float], None]]:
    """Yields the function that advances the bar. ``total=None``: the total is unknown.

    Where standard error is not a terminal (a log file, a batch job), it prints a line every half
    minute instead; with ``announce`` the first one at once.
    """
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        if announce:
            console.print(what, highlight=False)
        yield _Lines(what, total, console, clock)
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda amount: progress.advance(task, amount)


def output(console: Console | None = None, *, width: int = 150) -> Console:
    """Standard output, or the console given; at least ``width`` wide if it is not a terminal."""
    from rich.console import Console

    out = console or Console()
    if not out.is_terminal:
        out.width = max(out.width, width)
    return out


def grid(first: str, *headings: str, left: Sequence[str] = ()) -> Table:
    """A table whose first column may wrap; the others are aligned right unless in ``left``."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold", min_width=20)
    for name in headings:
        justify: Literal["left", "right"] = "left" if name in left else "right"
        table.add_column(plain(name), justify=justify, no_wrap=True)
    return table


def number(value: float | None, form: str = ".4g") -> str:
    """A number in a table's cell; empty if it is unknown (None or NaN)."""
    return "" if value is None or value != value else format(value, form)


def plain(text: str) -> Text:
    """Text that no markup or control character changes: names come from untrusted files."""
    from rich.text import Text

    return Text(visible(text))


def say(line: str) -> None:
    """One line on standard error, with control characters escaped."""
    print(f"rankscope: {visible(' '.join(line.split()))}", file=sys.stderr)


def message(error: BaseException) -> str:
    """An error's text in one line, with the file that it is about."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if (
        isinstance(error, FileNotFoundError) and " " not in text
    ):  # object stores give the name alone
        return f"{text or 'a file'}: no such file or object"
    return text


def visible(text: str) -> str:
    """Text with control characters escaped: names come from untrusted files."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def defused(value: Any) -> Any:
    """`value`, with a leading apostrophe (which spreadsheets hide) if it is text that a spreadsheet
    would run as a formula. Numbers stay numbers, even as text."""
    if isinstance(value, str) and value.startswith(FORMULA) and not _number(value):
        return f"'{value}"
    return value


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def duration(seconds: float) -> str:
    """3 h 20 min, 4 min 10 s, 12 s. Rounded once, so that no part reaches 60."""
    whole = round(seconds)
    if whole >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
