"""Several tests of one study: p-values adjusted for their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down adjustment (1979, Scandinavian J. Statistics 6, 65-70); NaN where there was no test.

    Rejecting what lies at or below 0.05 errs anywhere in the family with probability 0.05 at most, however
    the tests depend on each other.
    """
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted
