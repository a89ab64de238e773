"""What readers return: matrices to measure, and what was skipped with the reason."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import regex

from rankscope.linalg import Operator
from rankscope.weights.limits import PATTERN_SECONDS, PATTERNS_SECONDS

Kind = Literal["W", "dW", "W+dW"]


@dataclass(frozen=True)
class Matrix:
    """One matrix of one layer, never formed where it has factors.

    ``operator`` is None if there is nothing to measure; ``note`` then says why. A matrix that is
    not ``trusted`` is measured, but its stable rank is not reported. ``read_from`` is "factors"
    (B and A), "magnitude" (DoRA), "merge" (PEFT's own), "difference" (of two checkpoints) or
    "weights" (a stored weight).
    """

    layer: str
    matrix: Kind
    shape: tuple[int, int]
    operator: Operator | None
    read_from: str
    r: int | None = None
    scale: float | None = None
    note: str | None = None
    trusted: bool = True


@dataclass(frozen=True)
class Skipped:
    """Something that belongs to the source and was not measured."""

    layer: str
    why: str

    @property
    def plain(self) -> str:
        """The reason alone, without its subject."""
        return self.why.removeprefix("W and W + dW: ")


Reading = Iterator[Matrix | Skipped]


class Layer(NamedTuple):
    """A named part of a source, and the function that reads it."""

    name: str
    read: Callable[[], Reading]


def skipped(layer: str, why: str) -> Layer:
    """A layer that is not measured."""
    return Layer(layer, lambda: iter([Skipped(layer, why)]))


def selected(layers: Iterable[Layer], pattern: re.Pattern[str] | None) -> Reading:
    """The matrices of all layers whose names match the user's ``pattern``; the others as Skipped.

    ``ValueError`` if none matches.
    """
    left_out: list[str] = []
    watch = Stopwatch(PATTERNS_SECONDS)
    found = False
    for layer in layers:
        if pattern is None or _finds(pattern, layer.name, watch):
            found = True
            yield from layer.read()
        else:
            left_out.append(layer.name)
            yield not_chosen(layer.name, pattern)
    if left_out and not found and pattern is not None:
        raise ValueError(
            f"layers = {pattern.pattern!r}: expected it to find a layer; found none in "
            f"{len(left_out)}, "
            f"such as {', '.join(name[:100] for name in left_out[:3])}."
        )


class Stopwatch:
    """A time budget that many small tasks share."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def __enter__(self) -> Stopwatch:
        self.started = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.left -= max(0.0, time.thread_time() - self.started - 1e-5)


def _finds(pattern: re.Pattern[str], name: str, watch: Stopwatch) -> bool:
    """As ``pattern.search``, within a time limit."""
    try:
        with watch:
            found: object = regex.search(pattern.pattern, name, timeout=PATTERN_SECONDS)
        if watch.left < 0:
            raise TimeoutError
    except TimeoutError:
        raise ValueError(
            f"layers: expected a regular expression that matches a name quickly; "
            f"{pattern.pattern[:60]!r} took longer than {PATTERN_SECONDS:g} s on {name[:60]}, or "
            f"all together than {PATTERNS_SECONDS:g} s."
        ) from None
    return found is not None


def not_chosen(layer: str, pattern: re.Pattern[str]) -> Skipped:
    """The record of a layer that the user excluded."""
    return Skipped(layer, f"left out by layers = {pattern.pattern!r}")


def distinct(reading: Reading) -> Reading:
    """The same, with " (2)", " (3)" ... after names that have occurred before."""
    met: Counter[tuple[str, str]] = Counter()
    for one in reading:
        if isinstance(one, Matrix):
            met[one.layer, one.matrix] += 1
            if (count := met[one.layer, one.matrix]) > 1:
                one = replace(one, layer=f"{one.layer} ({count})")
        yield one
        del one  # a reference would keep the matrix in memory while the next is read
