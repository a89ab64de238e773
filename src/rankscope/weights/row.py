"""One measured matrix: a line of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankscope.linalg import summary
from rankscope.weights.matrix import Matrix

# Of a dense dW the effective rank takes all singular values: a whole SVD, which is paid for up to this min(m,
# n).
WHOLE_SVD = 1024
FACTORED = "factors"


@dataclass(frozen=True)
class Row:
    """One matrix, measured: ``shape`` (m, n); what is undefined or untrusted is None, and ``note`` says why.

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
    found = None
    if matrix.operator is not None:
        affordable = matrix.read_from == FACTORED or min(matrix.shape) <= WHOLE_SVD
        spectrum = effective_rank and matrix.matrix == "dW" and matrix.trusted and affordable
        found = summary(matrix.operator, rtol=rtol, certify=certify, effective_rank=spectrum)
    rank = found.stable_rank if found is not None and matrix.trusted else None
    reason = found.stable_rank.reason if found is not None else None
    notes = [note for note in (reason, matrix.note) if isinstance(note, str)]
    return Row(
        layer=matrix.layer,
        matrix=matrix.matrix,
        shape=matrix.shape,
        r=matrix.r,
        scale=matrix.scale,
        stable_rank=_number(rank and rank.value),
        lower=_number(rank and rank.lower),
        upper=_number(rank and rank.upper),
        spectral_norm=_number(found and found.spectral_norm),
        frobenius_norm=_number(found and found.frobenius_norm),
        effective_rank=_number(found and found.effective_rank),
        read_from=matrix.read_from,
        note="; ".join(notes) or None,
    )


def _number(value: object) -> float | None:
    """A finite float, or None: failure is never a number."""
    return float(value) if isinstance(value, float) and math.isfinite(value) else None
