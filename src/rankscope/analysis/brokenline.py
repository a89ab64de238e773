"""A plateau that turns into a decline: least squares over a grid of knots, for many responses at once.

The curve is ``y(u) = p - a max(0, 1 - u / w)^2 - d clip((u - t) / (f - t), 0, 1)`` with a, d >= 0: too little
training up to u = w, a plateau p, a decline from the threshold t, a floor from f on. A decline is the difference
of two hinges ``max(0, u - k)``, so one Gram matrix of all hinges and rises serves every candidate, and a
response enters through its products with them alone: more observations cost nothing more below.

Letters: N observations, G clusters, K columns, W rises, P pairs of turn and floor, R responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST_TRIALS = 3  # on either side of a knot


@dataclass(frozen=True)
class Knots:
    """Candidates: every ``rise`` w (W,; 0: none) with every pair of ``turn`` t and ``floor`` f (P,).

    t = 0 declines from the start, t = inf (the last pair) not at all. ``allowed`` (W, P): the rise ends
    before the decline begins.
    """

    rise: Array
    turn: Array
    floor: Array

    @property
    def allowed(self) -> Mask:
        """Candidates whose rise ends before their decline begins: (W, P)."""
        return self.rise[:, None] <= self.turn

    @property
    def flat(self) -> Mask:
        """Candidates without a decline: (W, P)."""
        return np.isinf(self.turn) & self.allowed

    @property
    def straight(self) -> Mask:
        """Candidates that decline from the start, and a constant: no plateau, so no threshold. (W, P)"""
        return (self.rise[:, None] == 0) & ((self.turn == 0) | np.isinf(self.turn))

    def turning_at(self, turn: float) -> Mask:
        """Candidates with this threshold; without a decline, too, which is theirs with d = 0. (W, P)"""
        return ((self.turn == turn) & self.allowed) | self.flat


def candidates(u: Array, clusters: NDArray[np.integer], floors: Array | None = None) -> Knots:
    """Knots to try for drifts `u` (N,) >= 0, spread over their range; `clusters` (N,) are 0 .. G - 1.

    At least three trials lie on either side of a threshold and beyond a floor. The rise ends before the
    threshold, and the decline takes a twentieth of the range at least. `floors` are tried as well.
    """
    top = float(u.max())
    turn = np.union1d(np.linspace(0, top, 26), np.quantile(u, np.linspace(0.1, 0.9, 9)))
    rise = np.append(0.0, np.quantile(u, [0.1, 0.25, 0.4, 0.6]))
    return _grid(u, clusters, rise, turn, np.append(np.linspace(0, top, 9), [] if floors is None else floors))


def straight(u: Array, clusters: NDArray[np.integer]) -> Knots:
    """Declines from the start, to floors that lie close to each other."""
    return _grid(u, clusters, np.zeros(1), np.empty(0), np.linspace(0, float(u.max()), 121))


def refined(u: Array, clusters: NDArray[np.integer], knots: Knots, kept: Mask, rise: float) -> Knots:
    """A finer grid over the candidates `kept` (W, P) of `knots`, two steps of that grid beyond them.

    Two, because t and f lean on each other: where one of them settles, the other moves on. Rises close in
    on `rise`, the best one.
    """
    pairs = kept.any(axis=0) & (knots.turn > 0) & np.isfinite(knots.turn)
    top = float(u.max())
    rises = knots.rise
    if rise > 0:
        ratio = float(np.median(rises[2:] / rises[1:-1])) if len(rises) > 2 else 2.0
        rises = np.append(0.0, rise * ratio ** np.linspace(-1, 1, 5))
    return _grid(
        u,
        clusters,
        rises,
        _finer(knots.turn[(knots.turn > 0) & np.isfinite(knots.turn)], knots.turn[pairs], 25, top),
        _finer(knots.floor[np.isfinite(knots.floor)], knots.floor[pairs], 13, top),
    )


def _finer(values: Array, kept: Array, count: int, top: float) -> Array:
    """`count` places from two steps of `values` below `kept` to two above, inside (0, top]."""
    if not len(kept):
        return kept
    steps = np.diff(np.unique(values))
    reach = 2 * float(np.median(steps)) if len(steps) else 0.25 * top
    return np.linspace(max(kept.min() - reach, kept.min() / 4), min(kept.max() + reach, top), count)


def _grid(u: Array, clusters: NDArray[np.integer], rise: Array, turn: Array, floor: Array) -> Knots:
    """The admissible pairs of a grid, with a decline from the start and none at all beside them."""
    top = float(u.max())
    highest, lowest = np.zeros(int(clusters.max()) + 1), np.full(int(clusters.max()) + 1, np.inf)
    np.maximum.at(highest, clusters, u)
    np.minimum.at(lowest, clusters, u)
    beyond, before = np.sort(highest)[-FEWEST_TRIALS], np.sort(lowest)[FEWEST_TRIALS - 1]
    rise, floor = np.unique(rise), np.unique(np.append(floor, top))
    turn = np.append(0.0, np.unique(turn[(turn > before) & (turn < beyond)]))
    t, f = (a.ravel() for a in np.meshgrid(turn, floor, indexing="ij"))
    kept = (f - t > top / 20) & ((f == top) | (f < beyond))
    return Knots(rise, np.append(t[kept], np.inf), np.append(f[kept], np.inf))


def curve(u: Array, rise: float, turn: float, floor: float, coefficients: Array) -> Array:
    """The curve with `coefficients` (p, a, d) at drifts `u`."""
    plateau, a, d = coefficients
    early = rising(u, rise)
    late = np.clip((u - turn) / (floor - turn), 0, 1) if np.isfinite(turn) else np.zeros_like(u)
    return plateau - a * early - d * late


def rising(u: Array, rise: float) -> Array:
    """max(0, 1 - u / w)^2: steep where training has just begun, level where the plateau does; 0 without a rise."""
    return np.maximum(0, 1 - u / rise) ** 2 if rise > 0 else np.zeros_like(u)


class Design:
    """The rises and hinges of `knots` at drifts `u`, weighted for trials whose observations resemble each other.

    `correlation` rho is that of two observations of one trial (exchangeable working correlation): products
    are those of generalised least squares, ``sum x y - rho / (1 + (n - 1) rho) sum x sum y`` per cluster of n
    (Liang and Zeger 1986, Biometrika 73, 13-22). With rho = 0 they are the ordinary ones.
    """

    def __init__(
        self, u: Array, clusters: NDArray[np.integer], knots: Knots, *, correlation: float = 0.0
    ) -> None:
        self.knots = knots
        self._starts = np.flatnonzero(np.diff(clusters, prepend=-1))
        sizes = np.diff(np.append(self._starts, len(u)))
        self._shrink = correlation / (1 + (sizes - 1) * correlation)  # (G,)
        ends = knots.floor[np.isfinite(knots.floor)]
        places = np.unique(np.concatenate([knots.turn[np.isfinite(knots.turn)], ends]))
        early = [rising(u, rise) for rise in knots.rise]
        self._columns = np.column_stack(
            [np.ones_like(u), *early, np.maximum(0, u[:, None] - places)]
        )  # (N, K)
        self._sums = np.add.reduceat(self._columns, self._starts, axis=0)  # (G, K)
        gram = self._columns.T @ self._columns - (self._sums * self._shrink[:, None]).T @ self._sums
        self._ones = gram[0] / gram[0, 0]  # projection on the intercept
        self._rises = np.eye(len(knots.rise), gram.shape[0], 1)  # (W, K)
        self._ramps = _ramps(knots, places, gram.shape[0])  # (P, K)
        centred = gram - np.outer(gram[0], self._ones)
        self._rr = np.einsum("wk,kl,wl->w", self._rises, centred, self._rises)
        self._mm = np.einsum("pk,kl,pl->p", self._ramps, centred, self._ramps)
        self._rm = self._rises @ centred @ self._ramps.T  # (W, P)
        self._size = gram[0, 0]

    def products(self, y: Array) -> Array:
        """Products of the columns with a response (N,), per cluster: (K, G)."""
        own = np.add.reduceat(self._columns * y[:, None], self._starts, axis=0)
        return (own - self._sums * (self._shrink * np.add.reduceat(y, self._starts))[:, None]).T

    def squares(self, x: Array, y: Array) -> Array:
        """Products of two responses, per cluster: (G,)."""
        both = np.add.reduceat(x * y, self._starts)
        return both - self._shrink * np.add.reduceat(x, self._starts) * np.add.reduceat(y, self._starts)

    def errors(self, products: Array, squares: Array) -> Array:
        """Squared error of every candidate for responses given by `products` (K, R) and `squares` (R,).

        (W, P, R); inf where the candidate isn't allowed or its best coefficients break a >= 0 or d >= 0:
        then the best one is another candidate, without that rise or that decline.
        """
        centred = products - np.outer(self._ones, products[0])
        spread = squares - products[0] ** 2 / self._size
        ry, my = self._rises @ centred, self._ramps @ centred  # (W, R), (P, R)
        tiny = 1e-10 * self._size
        found = np.empty((len(self._rr), len(self._mm), len(squares)))
        least = 1e-15 * (1 + squares)
        for w, width in enumerate(self.knots.rise):
            allowed = self.knots.allowed[w]
            if width > 0 and self._rr[w] <= tiny:
                found[w] = np.inf
                continue
            lean = self._rm[w] / self._rr[w] if width > 0 else np.zeros(len(self._mm))
            rest = self._mm - lean * self._rm[w] if width > 0 else self._mm
            there = rest > np.maximum(tiny, 1e-8 * self._mm)
            allowed = allowed & (there | np.isinf(self.knots.turn))
            inverse = np.divide(1.0, rest, out=np.zeros_like(rest), where=there)
            left = my - lean[:, None] * ry[w] if width > 0 else my
            drop = left * inverse[:, None]  # minus d
            error = spread - drop * left
            wrong = drop > 0
            if width > 0:
                rise = (ry[w] - self._rm[w][:, None] * drop) / self._rr[w]  # minus a
                error -= ry[w] ** 2 / self._rr[w]
                wrong |= rise > 0
            np.maximum(error, least, out=error)
            error[wrong] = np.inf
            error[~allowed] = np.inf
            found[w] = error
        return found

    def coefficients(self, at: tuple[int, int], products: Array) -> Array:
        """p, a, d of candidate `at` = (w, p) for one response with `products` (K,)."""
        w, p = at
        centred = products - self._ones * products[0]
        ry, my = self._rises[w] @ centred, self._ramps[p] @ centred
        gram = np.array([[self._rr[w], self._rm[w, p]], [self._rm[w, p], self._mm[p]]])
        rise, drop = np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ np.array([ry, my])
        plateau = (
            products[0] / self._size - rise * self._rises[w] @ self._ones - drop * self._ramps[p] @ self._ones
        )
        return np.array([plateau, -rise, -drop])


def _ramps(knots: Knots, places: Array, columns: int) -> Array:
    """clip((u - t) / (f - t), 0, 1) as two hinges, which are the last columns: (P, K); 0 where t is infinite."""
    found = np.zeros((len(knots.turn), columns))
    first = columns - len(places)
    for row, t, f in zip(found, knots.turn, knots.floor, strict=True):
        if np.isfinite(t):
            row[first + np.searchsorted(places, t)] = 1 / (f - t)
            row[first + np.searchsorted(places, f)] = -1 / (f - t)
    return found


def least(errors: Array, among: Mask) -> Array:
    """The least error among candidates (W, P), per response: (R,)."""
    return errors[among].min(axis=0)


def best(errors: Array, among: Mask) -> NDArray[np.integer]:
    """Indices (w, p) of the best of these candidates, per response: (2, R)."""
    return np.argwhere(among)[errors[among].argmin(axis=0)].T
