"""A batch of matrices scaled to norms near 1, with ||M||_F, and the operator that Lanczos
multiplies.

Letters: N matrices of a flat batch, m rows, n columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from rankscope.linalg.dense import Dense
from rankscope.linalg.frobenius import (
    formation_error,
    formed,
    frobenius_squared,
    summation_error,
)
from rankscope.linalg.operator import Operator, Sum
from rankscope.linalg.rounding import unit_roundoff

# entries up to which a sum is made into a matrix, which is then read alone in each step
FORMED = 2**22
# norms from 1 / this to this need no rescaling: their fourth powers are float32 numbers
ORDINARY = 2.0**10
MOST = 1000  # largest exponent divided out at once: the inverse must be finite, too
LOOSE = 1e-4  # relative error of ||M||_F that must be allowed before anything is formed in float32


@dataclass(frozen=True)
class ScaledGroup:
    """Matrices ``op`` (N, m, n); their ``norm`` ||M||_F (N,) float64 CPU, to a relative ``error``
    (N,); their ``magnitude`` (N,); and ``matrix``, which Lanczos multiplies: M formed in op.dtype
    where it is small, also for a sum, else ``op``. ``reach`` (N,): the norm that the rounding of a
    product is relative to."""

    op: Operator
    norm: Tensor
    magnitude: Tensor
    error: Tensor
    matrix: Operator
    reach: Tensor

    @property
    def real(self) -> Tensor:
        """(N,) bool: neither zero nor without a finite norm."""
        return (self.norm > 0) & (self.norm < torch.inf)

    @property
    def formation(self) -> Tensor:
        """(N,): what forming the rows in float64 may change in Frobenius norm: docs/math.md, 5."""
        return formation_error(self.op) * self.magnitude

    @property
    def vanishing(self) -> Tensor:
        """(N,): a bound on ||M||_F where it was found to be 0. A difference of two stored matrices
        that is found to be 0 is exactly 0."""
        op = self.op
        pair = isinstance(op, Sum) and isinstance(op.left, Dense) and isinstance(op.right, Dense)
        exact = pair or isinstance(op, Dense)
        return torch.zeros_like(self.norm) if exact else self.formation

    @property
    def frobenius(self) -> Tensor:
        """(N,): an upper bound on ||M||_F, and on that of the rows as float64 forms them."""
        return self.norm * (1 + self.error) + self.formation

    def select(self, index: Tensor) -> ScaledGroup:
        """The matrices at `index` (N',)."""
        batch = self.op.batch_shape
        norm, magnitude, error, reach = (
            x[index] for x in (self.norm, self.magnitude, self.error, self.reach)
        )
        op, matrix = (x.select(index, batch) for x in (self.op, self.matrix))
        return ScaledGroup(op, norm, magnitude, error, matrix, reach)

    def cast(self, dtype: torch.dtype) -> Operator:
        """What Lanczos multiplies in `dtype`."""
        if (
            dtype == self.op.dtype
            or not isinstance(self.matrix, Dense)
            or isinstance(self.op, Dense)
        ):
            return self.matrix.cast(dtype)
        return formed(self.op, dtype)[0]

    def allowance(self, dtype: torch.dtype) -> Tensor:
        """What rounding in `dtype` may add to sigma_1, the forming of M included: docs/math.md,
        (13)."""
        products = (2 * max(self.op.shape[-2:]) ** 0.5 + 1) * unit_roundoff(dtype) * self.reach
        return products + self.formation


def normalized(
    op: Operator, *, form: bool = True, slack: float = 0.0
) -> tuple[ScaledGroup, Tensor]:
    """The operator scaled to norms near 1, and the powers of two (N,) that were divided out.

    Float32 is then far from its limits: Lanczos squares sigma_1 twice. Scaling by a power of two is
    exact. ||M||_F is exact to float64's rounding, or, where that is much cheaper, to a relative
    ``slack``.
    """
    op, size = op.balanced(), torch.ones(op.batch_shape, dtype=torch.float64)
    magnitude = None
    if not isinstance(op, Dense):  # what is added up, before float32 adds it
        magnitude = _magnitude(op)
        op, again = _rescaled(op, size, magnitude)
        magnitude, size = magnitude / (again / size), again
    group = _measured(op, form, slack, magnitude)
    for _ in range(2):  # once more where the sum cancelled, or its squares had left float64's range
        op, again = _rescaled(op, size, group.norm)
        if again is size:
            break
        group, size = _measured(op, form, slack), again
    return group, size


def _rescaled(op: Operator, size: Tensor, norm: Tensor) -> tuple[Operator, Tensor]:
    """``op`` divided by powers of two near ``norm`` where that is not of ordinary size, and
    ``size`` times these powers; both unchanged where no matrix needs it."""
    extreme = ~((norm > 1 / ORDINARY) & (norm < ORDINARY))
    if not bool(extreme.any()):
        return op, size
    known = (norm > 0) & (norm < torch.inf)
    rough = op.exponent().expand(op.batch_shape).cpu()
    near = torch.where(known, torch.frexp(norm)[1], rough).clamp(-MOST, MOST)
    near = torch.minimum(near, 1024 - torch.frexp(size)[1])  # 2^1024 is infinite
    power = torch.exp2(near.double())
    power = torch.where(extreme & power.isfinite() & (power > 0), power, 1.0)
    if bool((power == 1).all()):
        return op, size
    return op.scaled(1 / power), size * power


def _magnitude(op: Operator) -> Tensor:
    return op.magnitude().expand(op.batch_shape).cpu()


def _measured(
    op: Operator, form: bool, slack: float, magnitude: Tensor | None = None
) -> ScaledGroup:
    """`magnitude` (N,): that of `op`, where it is known."""
    whole = all(
        leaf.shape[-2:] == op.shape[-2:] for leaf in op.leaves
    )  # W' - W: a step then reads one matrix instead of two
    form = form and not isinstance(op, Dense) and (whole or prod(op.shape[-2:]) <= FORMED)
    if form and slack > LOOSE and op.dtype == torch.float32 and max(op.shape[-2:]) >= op.terms:
        rough = _formed(op, torch.float32, magnitude)
        if bool((rough.error <= slack).all()):  # False for NaN as well
            return rough
    if form:
        return _formed(op, torch.float64, magnitude)
    return _with_norm(op, op, frobenius_squared(op), torch.float64, magnitude)


def _formed(op: Operator, dtype: torch.dtype, magnitude: Tensor | None) -> ScaledGroup:
    matrix, square = formed(op, op.dtype, within=dtype)
    return _with_norm(op, matrix, square, dtype, magnitude)


def _with_norm(
    op: Operator, matrix: Operator, square: Tensor, dtype: torch.dtype, magnitude: Tensor | None
) -> ScaledGroup:
    """``dtype``: the dtype in which the entries of ``matrix``, and the entries that were squared,
    were computed."""
    norm = square.sqrt().cpu()
    if magnitude is None:
        magnitude = norm if isinstance(op, Dense) else _magnitude(op)
    magnitude = torch.where(norm.isnan(), 1.0, magnitude)
    error = formation_error(op, dtype) * magnitude / norm + summation_error(op)
    whole = isinstance(matrix, Dense) and dtype == torch.float64
    return ScaledGroup(op, norm, magnitude, error, matrix, norm if whole else magnitude)
