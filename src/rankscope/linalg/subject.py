"""A group of matrices made ready: near 1 in size, ||M||_F known, and what Lanczos multiplies.

Letters: N matrices of a flat batch, m rows, n columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from rankscope.linalg.certify import formation_error
from rankscope.linalg.dense import Dense
from rankscope.linalg.frobenius import formed, frobenius_squared
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma, unit_roundoff

FORMED = 2**22  # entries up to which a sum is made into a matrix, which is then read alone in each step


@dataclass(frozen=True)
class Subject:
    """`op` (N, m, n), its `norm` ||M||_F (N,) float64 CPU to a relative `error`, its `magnitude` (N,), and `matrix`:
    M itself in op.dtype where it is small, for a sum too, else op."""

    op: Operator
    norm: Tensor
    magnitude: Tensor
    error: Tensor
    matrix: Operator

    def cast(self, dtype: torch.dtype) -> Operator:
        """What Lanczos multiplies in `dtype`."""
        if dtype == self.op.dtype or not isinstance(self.matrix, Dense) or isinstance(self.op, Dense):
            return self.matrix.cast(dtype)
        return formed(self.op, dtype)[0]

    def allowance(self, dtype: torch.dtype) -> Tensor:
        """What rounding in `dtype` may add to sigma_1: docs/math.md, (13)."""
        reach = self.norm if isinstance(self.matrix, Dense) else self.magnitude
        return (2 * max(self.op.shape[-2:]) ** 0.5 + 1) * unit_roundoff(dtype) * reach


def prepared(op: Operator, *, form: bool = True) -> tuple[Subject, Tensor]:
    """The operator with extreme entries brought near 1, and the powers of two (N,) that were taken out."""
    matrix, norm = _measured(op, form)
    size = torch.ones_like(norm)
    extreme = ~((norm > 1e-12) & (norm < 1e12))
    if bool(extreme.any()):
        power = torch.exp2(op.exponent().expand(op.batch_shape).double()).cpu()
        size = torch.where(extreme & power.isfinite() & (power > 0), power, 1.0)
        op = op.scaled(1 / size)
        matrix, norm = _measured(op, form)
    good = norm > 0  # False for NaN as well
    magnitude = norm if isinstance(op, Dense) else op.magnitude().expand(op.batch_shape).cpu()
    magnitude = torch.where(good, magnitude, 1.0)
    error = formation_error(op) * magnitude / norm + gamma(2 * prod(op.shape[-2:]))
    return Subject(op, norm, magnitude, error, matrix), size


def _measured(op: Operator, form: bool) -> tuple[Operator, Tensor]:
    if form and not isinstance(op, Dense) and prod(op.shape[-2:]) <= FORMED:
        matrix: Operator
        matrix, square = formed(op, op.dtype)
    else:
        matrix, square = op, frobenius_squared(op)
    return matrix, square.sqrt().cpu()
