"""The best broken line for a set of responses, and what chance makes of it: the wild cluster bootstrap.

Responses are a fitted line plus its residuals, the sign of each trial's drawn at random, and the line is fitted again over the
whole grid (Hansen 2017, J. Business and Economic Statistics 35, 228-240, for regression kinks; Cameron, Gelbach and Miller
2008 for clusters).

Letters: N observations, G clusters, R resamples, W rises, P pairs of turn and floor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rankscope.analysis.bootstrap import LEVEL
from rankscope.analysis.brokenline import Design, best, least
from rankscope.analysis.knots import Array, Mask

MOST_SIGNS = 400  # signs drawn: more trials share them, which changes nothing but the time it takes


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


class Fit:
    """The best candidate of a design, or of those `among` its candidates (W, P), for a response `y` (N,)."""

    def __init__(self, design: Design, y: Array, among: Mask | None = None) -> None:
        self.design, self.y = design, y
        products = design.products(y).sum(axis=1)
        self.errors = design.errors(products[:, None], design.squares(y, y).sum()[None])
        grid = design.knots
        w, p = (int(x[0]) for x in best(self.errors, grid.allowed if among is None else among))
        self.rise, self.turn, self.floor = grid.rise[w], float(grid.turn[p]), float(grid.floor[p])
        self.error = float(self.errors[w, p, 0])
        self.coefficients = design.coefficients((w, p), products)
        self.values = design.curve((w, p), self.coefficients)

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


def p_value(fit: Fit, null: Mask, wild: Wild) -> float:
    """Of the null candidates against everything on offer, with responses drawn from the null's own best fit."""
    held = Fit(fit.design, fit.y, null)
    again = wild.errors(fit.design, held.values, fit.y)
    drawn = np.log(least(again, null) / least(again, fit.design.knots.allowed))
    return float((1 + (drawn >= np.log(held.error / fit.error) - 1e-12).sum()) / (1 + len(drawn)))


def correlation_of(left: Array, clusters: NDArray[np.integer]) -> float:
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
