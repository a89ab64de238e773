"""One measured matrix: a line of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankscope.linalg import singular_values, summary
from rankscope.measurement.suggest import effective_rank, energy_ranks
from rankscope.weights.matrix import Matrix

# Of a dense dW the effective rank takes all singular values: a whole SVD, which is paid for up to this min(m,
# n).
WHOLE_SVD = 1024
# m n min(m, n) up to which all singular values cost less than looks at bounds: exact, and the same in every run.
SMALL = 2**23
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

    @property
    def uses_rank(self) -> bool:
        """Whether ``stable_rank`` / ``r`` means anything: dW has rank r at most. DoRA's hasn't."""
        return self.matrix == "dW" and self.read_from == FACTORED


def measured(
    matrix: Matrix, *, rtol: float, certify: bool, spectra: dict[str, tuple[int, ...]] | None = None
) -> Row:
    """The row of ``matrix``; where it can't be measured the numbers are None and ``note`` says why.

    Into ``spectra`` go the energy ranks of dW under the layer's name. They and the effective rank take all singular
    values: of dW only, not of a dense one with min(m, n) above ``WHOLE_SVD``, and not where ``spectra`` is None.
    """
    found = effective = None
    if matrix.operator is not None:
        small = math.prod(matrix.shape) * min(matrix.shape) <= SMALL
        found = summary(matrix.operator, rtol=rtol, certify=certify, effective_rank=False, exact=small)
        affordable = matrix.read_from == FACTORED or min(matrix.shape) <= WHOLE_SVD
        if spectra is not None and matrix.matrix == "dW" and matrix.trusted and affordable:
            sigma = singular_values(matrix.operator)
            if float(sigma.sum()) > 0:  # neither zero nor NaN
                effective = effective_rank(sigma)
                spectra[matrix.layer] = energy_ranks(sigma)
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
        effective_rank=_number(effective),
        read_from=matrix.read_from,
        note="; ".join(notes) or None,
    )


def _number(value: object) -> float | None:
    """A finite float, or None: failure is never a number."""
    return float(value) if isinstance(value, float) and math.isfinite(value) else None
