"""Where the broken line turns: estimate, interval by inverting a test, and tests that pay for the search.

Everything random is a wild cluster bootstrap: the residuals of a fit, the sign of each trial's drawn at
random, and the line fitted again over the whole grid (Hansen 2017, J. Business and Economic Statistics 35,
228-240, for regression kinks; Cameron, Gelbach and Miller 2008 for clusters).

Letters: N observations, G clusters, R resamples, W rises, P pairs of turn and floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rankscope.analysis.bootstrap import LEVEL
from rankscope.analysis.brokenline import (
    Array,
    Design,
    Knots,
    Mask,
    best,
    candidates,
    curve,
    least,
    refined,
    rising,
    straight,
)

ROUNDS = 4  # of zooming in
MOST_SIGNS = 400  # signs drawn: more trials share them, which changes nothing but the time it takes


@dataclass(frozen=True)
class Changepoint:
    """The fitted line. ``rise`` w; ``turn`` t: inf for no decline, 0 for a decline from the start.

    ``low`` .. ``high`` holds t with 95 % confidence; -inf or inf where it is open. ``p_flat`` and
    ``p_straight`` test "no decline" and "a decline from the start". ``correlation`` is that of two
    evaluations of one trial. ``corners`` are the drifts at which the line bends, with its values ``at``.
    """

    rise: float
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


class Wild:
    """Draws of the wild cluster bootstrap: one sign per trial and resample, the same for every fit."""

    def __init__(self, clusters: int, resamples: int, rng: np.random.Generator) -> None:
        self._group = np.arange(clusters)
        if clusters > MOST_SIGNS:
            self._group = rng.permutation(clusters) % MOST_SIGNS
        self._signs = rng.choice([-1.0, 1.0], size=(int(self._group.max()) + 1, resamples))

    def errors(self, design: Design, fitted: Array, y: Array) -> Array:
        """Squared errors (W, P, R) for responses ``fitted + sign (y - fitted)``."""
        left = y - fitted
        products = design.products(fitted).sum(axis=1)[:, None] + self._flip(design.products(left))
        squares = design.squares(fitted, fitted).sum() + design.squares(left, left).sum()
        return design.errors(products, squares + 2 * self._flip(design.squares(fitted, left)[None])[0])

    def _flip(self, values: Array) -> Array:
        """Sums over clusters with each draw's signs: (., G) to (., R)."""
        return np.stack([np.bincount(self._group, row) for row in values]) @ self._signs


def changepoint(
    u: Array, y: Array, clusters: NDArray[np.integer], *, rng: np.random.Generator, resamples: int
) -> Changepoint | None:
    """The line through `y` (N,) at drifts `u` (N,) >= 0; `clusters` (N,) are 0 .. G - 1 in ascending order.

    None where too few trials lie on either side of any drift.
    """
    coarse = candidates(u, clusters)
    if not (np.isfinite(coarse.turn) & (coarse.turn > 0)).any():
        return None
    # The straight line's own floor decides whether it fits, so the grid is close there.
    direct = _Fit(Design(u, clusters, straight(u, clusters)), u, y)
    floor = direct.knots[2] if np.isfinite(direct.knots[2]) else u.max()
    coarse = candidates(u, clusters, floor + np.linspace(-0.1, 0.1, 9) * u.max())
    correlation = _correlation(y - _Fit(Design(u, clusters, coarse), u, y).values, clusters)
    wild = Wild(int(clusters.max()) + 1, resamples, rng)
    fit = _Fit(Design(u, clusters, coarse, correlation=correlation), u, y)
    p_flat, p_straight = (_p_value(fit, null, wild) for null in (coarse.flat, coarse.straight))
    low, high = -np.inf, np.inf
    if np.isfinite(fit.turn) and fit.turn > 0:
        fit, limit = _zoomed(fit, wild, clusters, correlation)
        low, high = fit.interval(limit)
    bends = [u.min(), *np.linspace(0, fit.knots[0], 9), fit.turn, fit.knots[2], u.max()]  # a rise is curved
    corners = np.array(bends)
    corners = np.unique(np.clip(corners[np.isfinite(corners)], u.min(), u.max()))
    return Changepoint(
        rise=fit.knots[0],
        turn=fit.turn,
        low=low,
        high=high,
        p_flat=p_flat,
        p_straight=p_straight,
        plateau=float(fit.coefficients[0]),
        drop=float(fit.coefficients[2]),
        correlation=correlation,
        corners=corners,
        at=curve(corners, *fit.knots, fit.coefficients),
    )


def _zoomed(fit: _Fit, wild: Wild, clusters: NDArray[np.integer], correlation: float) -> tuple[_Fit, float]:
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
        finer = refined(fit.u, clusters, fit.design.knots, kept | usual, fit.knots[0])
        if all(new > 0.7 * old for new, old in zip(_extent(finer), _extent(fit.design.knots), strict=True)):
            break
        fit = _Fit(Design(fit.u, clusters, finer, correlation=correlation), fit.u, fit.y)
    return fit, fit.critical(wild.errors(fit.design, fit.values, fit.y))


def _extent(knots: Knots) -> tuple[float, float]:
    """The lengths that thresholds and floors are spread over."""
    inner = (knots.turn > 0) & np.isfinite(knots.turn)
    top = knots.floor[np.isfinite(knots.floor)].max()
    floors = knots.floor[inner & (knots.floor < top)]
    return float(np.ptp(knots.turn[inner])), float(np.ptp(floors)) if len(floors) else 0.0


class _Fit:
    """The best candidate of a design among `pairs` for the data themselves."""

    def __init__(self, design: Design, u: Array, y: Array, among: Mask | None = None) -> None:
        self.design, self.u, self.y = design, u, y
        products = design.products(y).sum(axis=1)
        self.errors = design.errors(products[:, None], design.squares(y, y).sum()[None])
        grid = design.knots
        w, p = (int(x[0]) for x in best(self.errors, grid.allowed if among is None else among))
        self.knots = (float(grid.rise[w]), float(grid.turn[p]), float(grid.floor[p]))
        self.error = float(self.errors[w, p, 0])
        self.coefficients = design.coefficients((w, p), products)
        self.values = curve(u, *self.knots, self.coefficients)

    @property
    def turn(self) -> float:
        """The threshold of the best candidate."""
        return self.knots[1]

    def profile(self) -> tuple[Array, Array]:
        """Distinct thresholds, and log of the least error with each over the least of all."""
        knots = self.design.knots
        turns = np.unique(knots.turn)
        lowest = np.array([least(self.errors, knots.turning_at(turn))[0] for turn in turns])
        return turns, np.log(lowest / self.error)

    def critical(self, again: Array) -> float:
        """95 % quantile of the ratio at the fitted threshold over bootstrap errors `again` (W, P, R)."""
        knots = self.design.knots
        own = least(again, knots.turning_at(self.turn))
        return float(np.quantile(np.log(own / least(again, knots.allowed)), LEVEL))

    def interval(self, limit: float) -> tuple[float, float]:
        """Thresholds with a ratio up to `limit`."""
        turns, ratio = self.profile()
        inside = np.flatnonzero(ratio <= limit)
        return _crossing(turns, ratio, limit, inside[0], -1), _crossing(turns, ratio, limit, inside[-1], 1)


def _crossing(turns: Array, ratio: Array, limit: float, at: int, way: int) -> float:
    """Where `ratio` passes `limit` beyond the last threshold inside, straight between grid points; else way * inf."""
    out = at + way
    # The first threshold is "from the start", the last one "none": neither has a neighbour between it and the grid.
    if turns[at] == 0 or np.isinf(turns[at]):
        return way * np.inf
    if turns[out] == 0 or np.isinf(turns[out]):
        return float(turns[at])
    if not np.isfinite(ratio[out]):
        return float(turns[out])
    share = (limit - ratio[at]) / (ratio[out] - ratio[at])
    return float(turns[at] + share * (turns[out] - turns[at]))


def _p_value(fit: _Fit, null: Mask, wild: Wild) -> float:
    """Of the null candidates against everything on offer, with responses drawn from the null's own best fit."""
    held = _Fit(fit.design, fit.u, fit.y, null)
    again = wild.errors(fit.design, held.values, fit.y)
    drawn = np.log(least(again, null) / least(again, fit.design.knots.allowed))
    return float((1 + (drawn >= np.log(held.error / fit.error) - 1e-12).sum()) / (1 + len(drawn)))


def _correlation(left: Array, clusters: NDArray[np.integer]) -> float:
    """Correlation of two residuals of one cluster, by the analysis of variance."""
    sizes = np.bincount(clusters)
    total, groups = len(left), len(sizes)
    if total == groups:
        return 0.0
    means = np.bincount(clusters, left) / sizes
    within = float(((left - means[clusters]) ** 2).sum()) / (total - groups)
    between = float((sizes * (means - left.mean()) ** 2).sum()) / (groups - 1)
    typical = (total - float((sizes**2).sum()) / total) / (groups - 1)
    share = max(0.0, (between - within) / typical)
    return float(min(0.95, share / (share + within))) if share + within > 0 else 0.0


def change(u: Array, y: Array, clusters: NDArray[np.integer], rise: float) -> tuple[float, float, float]:
    """Slope of `y` on `u` times the range of `u`, past a rise that ends at `rise`: estimate, low, high.

    Ordinary least squares; the t interval takes its standard error from whole clusters (CR1).
    """
    basis = np.stack([np.ones_like(u), rising(u, rise), u])
    kept = basis[[0, 1, 2]] if np.ptp(basis[1]) > 0 else basis[[0, 2]]
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
