"""One measured matrix: a line of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankscope.linalg import summary
from rankscope.weights.matrix import Matrix

# Of a dense dW the effective rank takes all singular values: a whole SVD, which is paid for up to this min(m, n).
WHOLE_SVD = 1024
FACTORED = "factors"


@dataclass(frozen=True)
class Row:
    """One matrix, measured. ``shape`` (m, n); whatever is undefined or can't be trusted is None, and ``note`` says why.

    ``lower`` and ``upper`` bound ``stable_rank``. The fields and their order are those of ``measure --json``.
    """

    layer: str
    matrix: str
    shape: tuple[int, int]
    r: int | None
    scale: float | None
    stable_rank: float | None
    lower: float | None
    upper: float | None
    spectral_norm: float | None
    frobenius_norm: float | None
    effective_rank: float | None
    read_from: str
    note: str | None


def measured(matrix: Matrix, *, rtol: float, certify: bool, effective_rank: bool = True) -> Row:
    """The row of ``matrix``; where it can't be measured the numbers are None and ``note`` says why.

    The effective rank is taken of dW only, and not of a dense one with min(m, n) above ``WHOLE_SVD``.
    """
    head = (matrix.layer, matrix.matrix, matrix.shape, matrix.r, matrix.scale)
    if matrix.operator is None:
        return Row(*head, None, None, None, None, None, None, matrix.read_from, matrix.note)
    affordable = matrix.read_from == FACTORED or min(matrix.shape) <= WHOLE_SVD
    spectrum = effective_rank and matrix.matrix == "dW" and matrix.trusted and affordable
    found = summary(matrix.operator, rtol=rtol, certify=certify, effective_rank=spectrum)
    rank = found.stable_rank
    notes = [note for note in (rank.reason, matrix.note) if isinstance(note, str)]
    ranks = (rank.value, rank.lower, rank.upper) if matrix.trusted else (None, None, None)
    numbers = (*ranks, found.spectral_norm, found.frobenius_norm, found.effective_rank)
    return Row(*head, *map(_number, numbers), matrix.read_from, "; ".join(notes) or None)


def _number(value: object) -> float | None:
    """A finite float, or None: failure is never a number."""
    return float(value) if isinstance(value, float) and math.isfinite(value) else None
