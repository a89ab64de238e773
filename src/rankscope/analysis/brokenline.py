"""A rise, a plateau, a decline: least squares over a grid of knots, for many responses at once.

The curve is ``y(u, x) = p - a clip((w - x) / (w - v), 0, 1)^2 - d clip((u - t) / (f - t), 0, 1)`` with a, d >= 0. In the
drift u: a plateau p, a decline from the threshold t, a floor from f on. In the logarithm x of the update's size: nothing
learnt up to v, everything from w on. The two are not the same: most of what a small update learns moves the stable rank
of W + dW by less than a hundredth. A decline is the difference of two hinges ``max(0, u - k)``, so one Gram matrix of all
hinges and rises serves every candidate, and a response enters through its products with them alone: more observations
cost nothing more below.

Letters: N observations, G clusters, K columns, W rises, P pairs of turn and floor, R responses.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rankscope.analysis.knots import NO_RISE, Array, Knots, Mask


def declining(u: Array, turn: float, floor: float) -> Array:
    """What is lost at drifts `u`: 0 up to t, 1 from f on, straight between them; 0 without a decline."""
    return np.clip((u - turn) / (floor - turn), 0, 1) if np.isfinite(turn) else np.zeros_like(u)


def rising(x: Array, rise: Array) -> Array:
    """What is not yet learnt at log sizes `x`: 1 up to v, 0 from w on, level there; 0 without a rise."""
    v, w = rise
    return np.clip((w - x) / (w - v), 0, 1) ** 2 if w > NO_RISE[1] else np.zeros_like(x)


class Design:
    """The rises of `knots` at log sizes `x` and hinges at drifts `u`, weighted for trials whose observations resemble each other.

    `known` (N, B) are columns that every candidate has beside its intercept.

    `correlation` rho is that of two observations of one trial (exchangeable working correlation): products
    are those of generalised least squares, ``sum x y - rho / (1 + (n - 1) rho) sum x sum y`` per cluster of n
    (Liang and Zeger 1986, Biometrika 73, 13-22). With rho = 0 they are the ordinary ones.
    """

    def __init__(
        self,
        u: Array,
        clusters: NDArray[np.integer],
        knots: Knots,
        *,
        x: Array | None = None,
        known: Array | None = None,
        correlation: float = 0.0,
    ) -> None:
        self.u, self.clusters, self.knots, self.known = u, clusters, knots, known
        self.x = np.zeros_like(u) if x is None else x
        self.correlation = correlation
        self._starts = np.flatnonzero(np.diff(clusters, prepend=-1))
        sizes = np.diff(np.append(self._starts, len(u)))
        self._shrink = correlation / (1 + (sizes - 1) * correlation)  # (G,)
        ends = knots.floor[np.isfinite(knots.floor)]
        places = np.unique(np.concatenate([knots.turn[np.isfinite(knots.turn)], ends]))
        base = np.ones((len(u), 1)) if known is None else np.column_stack([np.ones_like(u), known])
        early = [rising(self.x, rise) for rise in knots.rise]
        self._columns = np.column_stack([base, *early, np.maximum(0, u[:, None] - places)])  # (N, K)
        self._sums = np.add.reduceat(self._columns, self._starts, axis=0)  # (G, K)
        gram = self._columns.T @ self._columns - (self._sums * self._shrink[:, None]).T @ self._sums
        self._b = b = base.shape[1]
        self._inverse = np.linalg.pinv(gram[:b, :b], hermitian=True)
        self._onto = gram[:, :b] @ self._inverse  # (K, B): projection on the columns that all have
        self._rises = np.eye(len(knots.rise), gram.shape[0], b)  # (W, K)
        self._ramps = _ramps(knots, places, gram.shape[0])  # (P, K)
        centred = gram - self._onto @ gram[:b]
        self._rr = np.einsum("wk,kl,wl->w", self._rises, centred, self._rises)
        self._mm = np.einsum("pk,kl,pl->p", self._ramps, centred, self._ramps)
        self._rm = self._rises @ centred @ self._ramps.T  # (W, P)
        self._size = gram[0, 0]

    def with_knots(self, knots: Knots) -> Design:
        """The same observations with other candidates."""
        return Design(self.u, self.clusters, knots, x=self.x, known=self.known, correlation=self.correlation)

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
        common = products[: self._b]
        centred = products - self._onto @ common
        spread = squares - (common * (self._inverse @ common)).sum(axis=0)
        ry, my = self._rises @ centred, self._ramps @ centred  # (W, R), (P, R)
        tiny = 1e-10 * self._size
        found = np.empty((len(self._rr), len(self._mm), len(squares)))
        least = 1e-15 * (1 + squares)
        for w, end in enumerate(self.knots.rise[:, 1]):
            allowed = self.knots.allowed[w]
            risen = end > NO_RISE[1]
            if risen and self._rr[w] <= tiny:
                found[w] = np.inf
                continue
            lean = self._rm[w] / self._rr[w] if risen else np.zeros(len(self._mm))
            rest = self._mm - lean * self._rm[w] if risen else self._mm
            there = rest > np.maximum(tiny, 1e-8 * self._mm)
            allowed = allowed & (there | np.isinf(self.knots.turn))
            inverse = np.divide(1.0, rest, out=np.zeros_like(rest), where=there)
            left = my - lean[:, None] * ry[w] if risen else my
            drop = left * inverse[:, None]  # minus d
            error = spread - drop * left
            wrong = drop > 0
            if risen:
                rise = (ry[w] - self._rm[w][:, None] * drop) / self._rr[w]  # minus a
                error -= ry[w] ** 2 / self._rr[w]
                wrong |= rise > 0
            np.maximum(error, least, out=error)
            error[wrong] = np.inf
            error[~allowed] = np.inf
            found[w] = error
        return found

    def coefficients(self, at: tuple[int, int], products: Array) -> Array:
        """a, d, p and what belongs to the known columns, of candidate `at` = (w, p) for one response with `products` (K,)."""
        w, p = at
        centred = products - self._onto @ products[: self._b]
        ry, my = self._rises[w] @ centred, self._ramps[p] @ centred
        gram = np.array([[self._rr[w], self._rm[w, p]], [self._rm[w, p], self._mm[p]]])
        rise, drop = np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ np.array([ry, my])
        taken = rise * self._rises[w] + drop * self._ramps[p]
        return np.array([-rise, -drop, *(self._inverse @ products[: self._b] - taken @ self._onto)])

    def curve(self, at: tuple[int, int], coefficients: Array) -> Array:
        """Candidate `at` with `coefficients` at the observations: (N,)."""
        w, p = at
        rise, turn, floor = self.knots.rise[w], self.knots.turn[p], self.knots.floor[p]
        late = declining(self.u, turn, floor)
        a, d, plateau, *others = coefficients
        found = plateau - a * rising(self.x, rise) - d * late
        return found if self.known is None else found + self.known @ np.array(others)


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
