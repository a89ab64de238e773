"""Where the broken line turns: estimate, interval by inverting a test, and tests that pay for the search.

Letters: N observations, G clusters, R resamples, W rises, P pairs of turn and floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rankscope.analysis.bootstrap import LEVEL
from rankscope.analysis.brokenfit import Fit, Wild, correlation_of, p_value
from rankscope.analysis.brokenline import Design, best, declining
from rankscope.analysis.knots import Array, Knots, candidates, refined, straight, with_rises

ROUNDS = 4  # of zooming in


@dataclass(frozen=True)
class Changepoint:
    """The fitted line. ``turn`` t: inf for no decline, 0 for a decline from the start.

    ``low`` .. ``high`` holds t with 95 % confidence; -inf or inf where it is open. ``p_flat`` and
    ``p_straight`` test "no decline" and "a decline from the start". ``correlation`` is that of two
    evaluations of one trial. ``corners`` are the drifts at which the line bends, with its values ``at``.
    """

    turn: float
    low: float
    high: float
    p_flat: float
    p_straight: float
    plateau: float
    drop: float
    correlation: float
    corners: Array
    at: Array


def changepoint(
    u: Array, x: Array, y: Array, clusters: NDArray[np.integer], tails: Array, wild: Wild
) -> Changepoint | None:
    """The line through `y` (N,) at drifts `u` (N,) >= 0; `clusters` (N,) are 0 .. G - 1 in ascending order.

    `tails` (., 2) are what may be left of a rise in the log sizes `x` (N,).

    None where too few trials lie on either side of any drift.
    """
    coarse = candidates(u, clusters)
    if not (np.isfinite(coarse.turn) & (coarse.turn > 0)).any():
        return None
    # The straight line's own floor decides whether it fits, so the grid is close there.
    direct = Fit(Design(u, clusters, straight(u, clusters)), y)
    floor = direct.floor if np.isfinite(direct.floor) else u.max()
    coarse = candidates(u, clusters, floors=floor + np.linspace(-0.1, 0.1, 9) * u.max())
    correlation = correlation_of(y - Fit(Design(u, clusters, coarse), y).values, clusters)
    fit = Fit(Design(u, clusters, coarse, correlation=correlation), y)
    p_flat = p_value(fit, coarse.flat, wild)
    p_straight = p_value(fit, coarse.straight, wild)
    if len(tails):
        # The end of a rise and a decline from the start look like a plateau and a decline together.
        tailed = with_rises(u, clusters, x, coarse, tails)
        longer = Fit(Design(u, clusters, tailed, x=x, correlation=correlation), y)
        p_straight = max(p_straight, p_value(longer, tailed.straight, wild))
    low, high = -np.inf, np.inf
    if np.isfinite(fit.turn) and fit.turn > 0:
        fit, limit = _zoomed(fit, wild)
        low, high = fit.interval(limit)
    corners = np.array([u.min(), fit.turn, fit.floor, u.max()])
    corners = np.unique(np.clip(corners[np.isfinite(corners)], u.min(), u.max()))
    drop, plateau = (float(c) for c in fit.coefficients[1:])
    return Changepoint(
        turn=fit.turn,
        low=low,
        high=high,
        p_flat=p_flat,
        p_straight=p_straight,
        plateau=plateau,
        drop=drop,
        correlation=correlation,
        corners=corners,
        at=plateau - drop * declining(corners, fit.turn, fit.floor),
    )


def _zoomed(fit: Fit, wild: Wild) -> tuple[Fit, float]:
    """The fit on a grid fine enough for its interval, and what the interval allows the likelihood ratio to be.

    Each round keeps what the data do not rule out and where the bootstrap puts its own best lines.
    """
    for _ in range(ROUNDS):
        again = wild.errors(fit.design, fit.values, fit.y)
        ratio = np.log(fit.errors[:, :, 0] / fit.error)
        kept = ratio <= fit.critical(again)
        w, p = best(again, fit.design.knots.allowed)
        usual = np.zeros_like(kept)
        usual[w, p] = True
        turns = fit.design.knots.turn[p]
        usual &= (fit.design.knots.turn >= np.quantile(turns, 0.005, method="nearest")) & (
            fit.design.knots.turn <= np.quantile(turns, 0.995, method="nearest")
        )
        design = fit.design
        finer = refined(design.u, design.clusters, design.knots, kept | usual)
        if all(new > 0.7 * old for new, old in zip(_extent(finer), _extent(design.knots), strict=True)):
            break
        fit = Fit(design.with_knots(finer), fit.y)
    return fit, fit.critical(wild.errors(fit.design, fit.values, fit.y))


def _extent(knots: Knots) -> tuple[float, float]:
    """The lengths that thresholds and floors are spread over."""
    inner = (knots.turn > 0) & np.isfinite(knots.turn)
    top = knots.floor[np.isfinite(knots.floor)].max()
    floors = knots.floor[inner & (knots.floor < top)]
    return float(np.ptp(knots.turn[inner])), float(np.ptp(floors)) if len(floors) else 0.0


def change(u: Array, y: Array, clusters: NDArray[np.integer]) -> tuple[float, float, float]:
    """Slope of `y` on `u` times the range of `u`: estimate, low, high.

    Ordinary least squares; the t interval takes its standard error from whole clusters (CR1).
    """
    kept = np.stack([np.ones_like(u), u])
    inverse = np.linalg.pinv(kept @ kept.T)
    slopes = inverse @ kept @ y
    starts = np.flatnonzero(np.diff(clusters, prepend=-1))
    scores = np.add.reduceat(kept * (y - slopes @ kept), starts, axis=1)  # (b, G)
    groups = len(starts)
    error = np.sqrt(((inverse @ scores) ** 2).sum(axis=1)[-1] * groups / (groups - 1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, groups - 1)) * error
    top = float(u.max())
    slope = float(slopes[-1])
    return top * slope, top * (slope - reach), top * (slope + reach)
