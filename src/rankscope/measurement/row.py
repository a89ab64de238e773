"""One measured matrix: a line of the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankscope.linalg import Dense, LowRank, Operator, Summary, summary
from rankscope.measurement.suggest import energy_ranks
from rankscope.weights.matrix import Matrix

# Of a dense dW the effective rank takes all singular values: a whole SVD, which is
# paid for up to this min(m, n).
WHOLE_SVD = 1024
# m n min(m, n) up to which all singular values cost less than looks at bounds: exact,
# and the same in every run.
SMALL = 2**23
STACKED = 2**12  # m n up to which dense matrices of one shape are measured together
FACTORED = "factors"


@dataclass(frozen=True)
class Row:
    """One matrix, measured: ``shape`` (m, n); what is undefined or untrusted is None: ``note`` says
    why.

    ``lower`` and ``upper`` bound ``stable_rank``. Where the layer's W was measured, too, ``drift``
    is sr(W + dW) / sr(W) - 1 (rows of W+dW), and ``rho`` is sigma_1(dW) / sigma_1(W) (rows of dW
    and W+dW). The fields and their order are those of ``measure --json``.
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
    drift: float | None = None
    rho: float | None = None

    @property
    def uses_rank(self) -> bool:
        """Whether ``stable_rank`` / ``r`` means anything: dW has rank r at most. DoRA's hasn't."""
        return self.matrix == "dW" and self.read_from == FACTORED

    @property
    def met(self) -> bool:
        """False where there are bounds, but so wide that there is no value."""
        return self.stable_rank is not None or self.lower is None

    @property
    def width(self) -> float | None:
        """How far apart the bounds lie, relative to the lower one."""
        return self.upper / self.lower - 1 if self.lower and self.upper is not None else None


def measured(
    matrix: Matrix, *, rtol: float, certify: bool, spectra: dict[str, tuple[int, ...]] | None = None
) -> Row:
    """The row of ``matrix``; where it can't be measured the numbers are None and ``note`` says why.

    Into ``spectra`` go the energy ranks of dW under the layer's name. They and the
    effective rank take all singular
    values: of dW only, not of a dense one with min(m, n) above ``WHOLE_SVD``, and
        not where ``spectra`` is None.
    """
    return measured_together([matrix], rtol=rtol, certify=certify, spectra=spectra)[0]


def measured_together(
    matrices: Sequence[Matrix],
    *,
    rtol: float,
    certify: bool,
    spectra: dict[str, tuple[int, ...]] | None = None,
) -> list[Row]:
    """The rows of ``matrices``, those of one shape in one pass: each as ``measured`` has it, to
    rounding."""
    groups: dict[object, list[int]] = {}
    for place, matrix in enumerate(matrices):
        groups.setdefault(_alike(matrix, place), []).append(place)
    rows: dict[int, Row] = {}
    for places in groups.values():
        group = [matrices[place] for place in places]
        operator = (
            group[0].operator if len(group) == 1 else _stacked([one.operator for one in group])
        )
        found = (
            None
            if operator is None
            else _summary(group[0], operator, rtol, certify, spectra is not None)
        )
        for place, one in enumerate(group):
            facts = None if found is None else _part(found, place if len(group) > 1 else None)
            rows[places[place]] = _row(one, facts, spectra)
    return [rows[place] for place in range(len(matrices))]


def _alike(matrix: Matrix, place: int) -> object:
    """What the matrices of one pass share: of factors the shapes, of a small dense matrix its
    own."""
    op = matrix.operator
    if type(op) is LowRank and not op.batch_shape:
        return (
            "factors",
            matrix.matrix,
            op.B.shape,
            op.A.shape,
            op.B.dtype,
            op.A.dtype,
            matrix.trusted,
        )
    if type(op) is Dense and not op.batch_shape and math.prod(op.shape) <= STACKED:
        return (
            "dense",
            matrix.matrix,
            op.shape,
            op.dtype,
            op.leaves[0].dtype,
            matrix.trusted,
            matrix.read_from,
        )
    return place


def _stacked(operators: Sequence[Operator | None]) -> Operator:
    """A batch of operators of one kind and shape."""
    low = [op for op in operators if isinstance(op, LowRank)]
    if low:
        scale = torch.stack([op.scale for op in low])
        return LowRank(
            B=torch.stack([op.B for op in low]), A=torch.stack([op.A for op in low]), scale=scale
        )
    return Dense(torch.stack([op.leaves[0] for op in operators if op is not None]))


def _summary(
    matrix: Matrix, operator: Operator, rtol: float, certify: bool, spectra: bool
) -> Summary:
    small = math.prod(matrix.shape) * min(matrix.shape) <= SMALL
    affordable = isinstance(operator, LowRank) or min(matrix.shape) <= WHOLE_SVD
    wanted = spectra and matrix.matrix == "dW" and matrix.trusted and affordable
    return summary(
        operator, rtol=rtol, certify=certify and not wanted, effective_rank=wanted, exact=small
    )


@dataclass(frozen=True)
class _Facts:
    """Of one matrix; ``sigma`` all its singular values, None where they were not needed."""

    value: float
    lower: float
    upper: float
    reason: str | None
    spectral_norm: float
    frobenius_norm: float
    effective_rank: float
    sigma: Tensor | None
    met: bool


def _part(found: Summary, place: int | None) -> _Facts:
    """One matrix of a batch; of a single one ``place`` is None."""

    def one(numbers: float | Tensor) -> float:
        return (
            float(numbers[place])
            if isinstance(numbers, Tensor) and place is not None
            else float(numbers)
        )

    rank, sigma, reason = found.stable_rank, found.singular_values, found.stable_rank.reason
    if isinstance(reason, tuple):
        reason = reason[place or 0]
    return _Facts(
        one(rank.value),
        one(rank.lower),
        one(rank.upper),
        reason,
        one(found.spectral_norm),
        one(found.frobenius_norm),
        one(found.effective_rank),
        sigma if sigma is None or place is None else sigma[place],
        bool(torch.as_tensor(rank.met if place is None else torch.as_tensor(rank.met)[place])),
    )


def _row(matrix: Matrix, found: _Facts | None, spectra: dict[str, tuple[int, ...]] | None) -> Row:
    effective = None
    if found is not None and math.isfinite(found.effective_rank) and found.sigma is not None:
        effective = found.effective_rank
        if spectra is not None:
            spectra[matrix.layer] = energy_ranks(found.sigma)
    rank = found if found is not None and matrix.trusted else None
    wide = None if rank is None or rank.met else _wide(rank)
    notes = [note for note in (found and found.reason, wide, matrix.note) if isinstance(note, str)]
    return Row(
        layer=matrix.layer,
        matrix=matrix.matrix,
        shape=matrix.shape,
        r=matrix.r,
        scale=matrix.scale,
        stable_rank=_number(rank and (math.nan if wide else rank.value)),
        lower=_number(rank and rank.lower),
        upper=_number(rank and rank.upper),
        spectral_norm=_number(found and found.spectral_norm),
        frobenius_norm=_number(found and found.frobenius_norm),
        effective_rank=_number(effective),
        read_from=matrix.read_from,
        note="; ".join(notes) or None,
    )


def _wide(found: _Facts) -> str:
    """Why there is no stable rank although there are bounds."""
    width = found.upper / found.lower - 1
    return (
        f"its bounds lie {width:.2g} of the lower one apart, more than asked for: --certify "
        "proves them, or ask for a larger --rtol"
    )


def _number(value: object) -> float | None:
    """A finite float, or None: failure is never a number."""
    return float(value) if isinstance(value, float) and math.isfinite(value) else None


def compared(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with ``drift`` and ``rho``, where the same layer has a row of W."""
    W = {row.layer: row for row in rows if row.matrix == "W"}
    dW = {row.layer: row for row in rows if row.matrix == "dW"}

    def one(row: Row) -> Row:
        if row.matrix == "W" or row.layer not in W:
            return row
        base, update = W[row.layer], dW.get(row.layer)
        ratio = _ratio(row.stable_rank, base.stable_rank) if row.matrix == "W+dW" else None
        return replace(
            row,
            drift=None if ratio is None else ratio - 1,
            rho=_ratio(update.spectral_norm, base.spectral_norm) if update is not None else None,
        )

    return tuple(one(row) for row in rows)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below
