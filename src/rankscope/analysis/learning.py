"""The size of the update up to which a model is still learning: what is not yet learnt cannot be lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankscope.analysis.bootstrap import LEVEL
from rankscope.analysis.brokenfit import Fit, Wild, correlation_of, p_value
from rankscope.analysis.brokenline import Design, rising
from rankscope.analysis.knots import NO_RISE, Array, all_rises, candidates, with_rises

STEPS = 2  # a head learns the larger class first, then the model learns the task


@dataclass(frozen=True)
class Learning:
    """``rise`` (v, w): logs of sizes; performance grows up to w and no further. -inf where it does not grow.

    ``p`` tests "small updates do no worse".
    """

    rise: tuple[float, float]
    p: float

    @property
    def learnt_from(self) -> float:
        """w."""
        return self.rise[1]

    @property
    def tails(self) -> Array:
        """Rises that begin where this one was found to end, twice as long at most: (., 2)."""
        v, w = self.rise
        return np.array([(w, w + share * (w - v)) for share in (0.5, 1, 2) if np.isfinite(w)]).reshape(-1, 2)


def learning(u: Array, x: Array, y: Array, clusters: NDArray[np.integer], wild: Wild) -> Learning:
    """Where `y` (N,) stops rising with the log size `x` (N,) of the update, beside any decline with the drift `u` (N,).

    Performance rises in steps; each is looked for beside the ones before, while a test at 5 % finds one.
    """
    rise, ps = NO_RISE, []
    known: Array | None = None
    knots = candidates(u, clusters, x=x)
    for _ in range(STEPS):
        first = Fit(Design(u, clusters, knots, x=x, known=known), y)
        correlation = correlation_of(y - first.values, clusters)
        ps.append(
            p_value(
                Fit(Design(u, clusters, knots, x=x, known=known, correlation=correlation), y),
                knots.unlearnt,
                wild,
            )
        )
        if ps[-1] > 1 - LEVEL:
            break
        closer = with_rises(u, clusters, x, knots, all_rises(x))
        step = Fit(Design(u, clusters, closer, x=x, known=known, correlation=correlation), y).rise
        column = rising(x, step)[:, None]
        known = column if known is None else np.hstack([known, column])
        rise = max(rise, (float(step[0]), float(step[1])), key=lambda ends: ends[1])
    return Learning(rise, ps[0])
