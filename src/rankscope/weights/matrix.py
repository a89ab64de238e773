"""What the readers hand over: matrices to be measured, and what they leave out with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from rankscope.linalg import Operator

Kind = Literal["W", "dW", "W+dW"]


@dataclass(frozen=True)
class Matrix:
    """One matrix of one layer, never formed where it has factors.

    ``operator`` is None where there is nothing to measure; ``note`` then says why. A matrix that isn't
    ``trusted`` is measured, but its stable rank is not reported. ``read_from`` is "factors" (B and A),
    "magnitude" (DoRA), "merge" (PEFT's own), "difference" (of two checkpoints) or "weights" (a stored weight).
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
        """The reason alone, without what it was the reason for."""
        return self.why.removeprefix("W and W + dW: ")


Reading = Iterator[Matrix | Skipped]


def distinct(reading: Reading) -> Reading:
    """The same with " (2)", " (3)" ... after a layer's name where a matrix of that name came before."""
    met: Counter[tuple[str, str]] = Counter()
    for one in reading:
        if isinstance(one, Matrix):
            met[one.layer, one.matrix] += 1
            if (count := met[one.layer, one.matrix]) > 1:
                one = replace(one, layer=f"{one.layer} ({count})")
        yield one
        del one  # held here, a matrix would stay in memory while the next is read
