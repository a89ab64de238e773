"""Matrices -> certified spectral facts. torch only; knows no file and no model. Formulas:
docs/math.md."""

from __future__ import annotations

from rankscope.linalg.dense import Dense, as_operator
from rankscope.linalg.estimate import Estimate
from rankscope.linalg.frobenius import row_norms
from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.operator import Operator, Sum
from rankscope.linalg.rounding import rounding_floor
from rankscope.linalg.scaled import Scaled
from rankscope.linalg.spectra import (
    Summary,
    effective_rank,
    frobenius_norm,
    singular_values,
    spectral_norm,
    stable_rank,
    summary,
)
from rankscope.linalg.subspaces import (
    captured_energy,
    intruder_dimensions,
    principal_angles,
    singular_subspaces,
)
from rankscope.linalg.truncation import Truncation

__all__ = [
    "Dense",
    "Estimate",
    "LowRank",
    "Operator",
    "Scaled",
    "Sum",
    "Summary",
    "Truncation",
    "as_operator",
    "captured_energy",
    "effective_rank",
    "frobenius_norm",
    "intruder_dimensions",
    "principal_angles",
    "rounding_floor",
    "row_norms",
    "singular_subspaces",
    "singular_values",
    "spectral_norm",
    "stable_rank",
    "summary",
]
