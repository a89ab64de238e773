"""One measured matrix: a line of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankscope.linalg import Dense, LowRank, Operator, Summary, summary
from rankscope.weights.matrix import Matrix

# The effective rank of a dense dW needs all singular values: computed up to this min(m, n).
WHOLE_SVD = 1024
# m n min(m, n) up to which all singular values cost less than iterating on bounds: exact, and the
# same in every run.
SMALL = 2**23
STACKED = 2**12  # m n up to which dense matrices of one shape are measured together
FACTORED = "factors"
SHARES = (0.90, 0.95, 0.99)  # of an update's energy ||dW||_F^2


@dataclass(frozen=True)
class Row:
    """One measured matrix of ``shape`` (m, n). Undefined or untrusted numbers are None; ``note``
    says why.

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
        """False if the bounds are so wide that there is no value."""
        return self.stable_rank is not None or self.lower is None

    @property
    def width(self) -> float | None:
        """How far apart the bounds lie, relative to the lower one."""
        return self.upper / self.lower - 1 if self.lower and self.upper is not None else None


def measured_together(
    matrices: Sequence[Matrix],
    *,
    rtol: float,
    certify: bool,
    spectra: dict[str, tuple[int, ...]] | None = None,
) -> list[Row]:
    """The rows of ``matrices``, measured together if of one shape, with the same result up to
    rounding.

    Where a matrix cannot be measured the numbers are None and ``note`` says why. Into ``spectra``
    go the energy ranks of dW under the layer's name. They and the effective rank take all singular
    values: of dW alone, not of a dense one with min(m, n) above ``WHOLE_SVD``, and not where
    ``spectra`` is None.
    """
    groups: dict[object, list[int]] = {}
    for place, matrix in enumerate(matrices):
        groups.setdefault(_alike(matrix, place), []).append(place)
    rows: dict[int, Row] = {}
    for places in groups.values():
        group = [matrices[place] for place in places]
        facts: Iterable[_Facts | None] = [None]
        if group[0].operator is not None:
            operator = _stacked([one.operator for one in group])
            facts = _facts(_summary(group[0], operator, rtol, certify, spectra is not None))
        for place, one, found in zip(places, group, facts, strict=True):
            rows[place] = _row(one, found, certify)
            if spectra is not None and found is not None and found.energy_ranks is not None:
                spectra[one.layer] = found.energy_ranks
    return [rows[place] for place in range(len(matrices))]


def _alike(matrix: Matrix, place: int) -> object:
    """A key that the matrices of one pass share; any other matrix is measured alone."""
    op = matrix.operator
    if type(op) is LowRank and not op.batch_shape:
        own: tuple[object, ...] = (op.B.shape, op.A.shape, op.B.dtype, op.A.dtype)
    elif type(op) is Dense and not op.batch_shape and math.prod(op.shape) <= STACKED:
        own = (op.shape, op.dtype, op.leaves[0].dtype, matrix.read_from)
    else:
        return place
    return type(op), matrix.matrix, matrix.trusted, *own


def _stacked(operators: Sequence[Operator | None]) -> Operator:
    """A batch of operators of one kind and shape; a single one as it is."""
    first = operators[0]
    if len(operators) == 1 and first is not None:
        return first
    low = [op for op in operators if isinstance(op, LowRank)]
    if low:
        B, A, scale = (torch.stack([getattr(op, x) for op in low]) for x in ("B", "A", "scale"))
        return LowRank(B=B, A=A, scale=scale)
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
    """The numbers of one matrix; ``energy_ranks`` is None where the singular values were not
    needed."""

    value: float
    lower: float
    upper: float
    spectral_norm: float
    frobenius_norm: float
    effective_rank: float
    met: bool
    reason: str | None
    energy_ranks: tuple[int, ...] | None


def _facts(found: Summary) -> Iterator[_Facts]:
    """The numbers of each matrix of a batch, or of a single one. Each tensor is converted once."""
    rank = found.stable_rank
    columns = [
        torch.as_tensor(numbers, dtype=torch.float64).reshape(-1).tolist()
        for numbers in (
            rank.value,
            rank.lower,
            rank.upper,
            found.spectral_norm,
            found.frobenius_norm,
            found.effective_rank,
        )
    ]
    count = len(columns[0])
    met = torch.as_tensor(rank.met).reshape(-1).tolist()
    reasons = rank.reason if isinstance(rank.reason, tuple) else (rank.reason,) * count
    sigma = found.singular_values
    energies: list[tuple[int, ...] | None] = [None] * count
    if sigma is not None:
        whole = energy_ranks(sigma.reshape(count, -1))
        energies = [
            own if math.isfinite(effective) else None
            for own, effective in zip(whole, columns[-1], strict=True)
        ]
    for numbers in zip(*columns, met, reasons, energies, strict=True):
        yield _Facts(*numbers)


def _row(matrix: Matrix, found: _Facts | None, certify: bool) -> Row:
    rank = found if found is not None and matrix.trusted else None
    wide = None if rank is None or rank.met else _wide(rank, certify)
    notes = [note for note in (found and found.reason, wide, matrix.note) if isinstance(note, str)]
    effective = found.effective_rank if found is not None and found.energy_ranks else None
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


def _wide(found: _Facts, certify: bool) -> str:
    """The note for a matrix whose bounds are too wide for a value."""
    width = found.upper / found.lower - 1
    return (
        f"its bounds lie {width:.2g} of the lower one apart, more than asked for: "
        f"{'' if certify else '--certify proves them, or '}ask for a larger --rtol"
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


def energy_ranks(sigma: Tensor) -> list[tuple[int, ...]]:
    """The ranks that hold each of SHARES of ||dW||_F^2: for each row of sigma (N, r) the smallest k
    whose k largest sigma_i^2 do. docs/math.md, (3)."""
    energy = sigma.double().square()
    held = energy.cumsum(-1) / energy.sum(-1, keepdim=True)
    wanted = torch.tensor(SHARES, dtype=torch.float64) * (1 - 1e-14)
    below = (held[:, None, :] < wanted[:, None]).sum(-1)  # (N, shares)
    return [tuple(ranks) for ranks in (below + 1).tolist()]
