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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST_TRIALS = 3  # on either side of a knot
NO_RISE = (-np.inf, -np.inf)  # learnt at any size


@dataclass(frozen=True)
class Knots:
    """Candidates: every ``rise`` (v, w) (W, 2; the first one is `NO_RISE`) with every pair of ``turn`` t and ``floor`` f (P,).

    t = 0 declines from the start, t = inf (the last pair) not at all. ``first`` (W,): the least drift at which
    a plateau can end, see `_plateau`.
    """

    rise: Array
    turn: Array
    floor: Array
    first: Array

    @property
    def allowed(self) -> Mask:
        """Candidates with a plateau that three trials have stood on, or without one: (W, P)."""
        return (self.first[:, None] < self.turn) | (self.turn == 0)

    @property
    def flat(self) -> Mask:
        """Candidates without a decline: (W, P)."""
        return np.isinf(self.turn) & self.allowed

    @property
    def straight(self) -> Mask:
        """Candidates that decline from the start, or not at all: no plateau, so no threshold. (W, P)"""
        return ((self.turn == 0) | np.isinf(self.turn)) & self.allowed

    @property
    def unlearnt(self) -> Mask:
        """Candidates without a rise: (W, P)."""
        return (self.rise[:, 1] == NO_RISE[1])[:, None] & self.allowed

    def turning_at(self, turn: float) -> Mask:
        """Candidates with this threshold; without a decline, too, which is theirs with d = 0. (W, P)"""
        return ((self.turn == turn) & self.allowed) | self.flat


def candidates(
    u: Array, clusters: NDArray[np.integer], *, x: Array | None = None, floors: Array | None = None
) -> Knots:
    """Knots to try for drifts `u` (N,) >= 0, spread over their range; with log sizes `x` (N,) rises, too.

    `clusters` (N,) are 0 .. G - 1. At least three trials lie on either side of a threshold, beyond a floor and past a rise.
    The decline takes a twentieth of the range at least. `floors` are tried as well.
    """
    top = float(u.max())
    turn = np.union1d(np.linspace(0, top, 26), np.quantile(u, np.linspace(0.1, 0.9, 9)))
    floor = np.append(np.linspace(0, top, 9), [] if floors is None else floors)
    return _grid(u, clusters, turn, floor, x)


def straight(u: Array, clusters: NDArray[np.integer]) -> Knots:
    """Declines from the start, to floors that lie close to each other."""
    return _grid(u, clusters, np.empty(0), np.linspace(0, float(u.max()), 121))


def refined(u: Array, clusters: NDArray[np.integer], knots: Knots, kept: Mask) -> Knots:
    """A finer grid over the candidates `kept` (W, P) of `knots`, two steps of that grid beyond them.

    Two, because t and f lean on each other: where one of them settles, the other moves on.
    """
    pairs = kept.any(axis=0) & (knots.turn > 0) & np.isfinite(knots.turn)
    top = float(u.max())
    turn = _finer(knots.turn[(knots.turn > 0) & np.isfinite(knots.turn)], knots.turn[pairs], 25, top)
    floor = _finer(knots.floor[np.isfinite(knots.floor)], knots.floor[pairs], 13, top)
    return _grid(u, clusters, turn, floor)


def with_rises(u: Array, clusters: NDArray[np.integer], x: Array, knots: Knots, rises: Array) -> Knots:
    """The same thresholds and floors with other `rises` (., 2) in `x`."""
    turn, floor = (k[np.isfinite(k)] for k in (knots.turn, knots.floor))
    return _grid(u, clusters, turn, floor, x, rises)


def all_rises(x: Array) -> Array:
    """Pairs (v, w) of any two of many quantiles of `x`: (., 2)."""
    at = np.unique(np.quantile(x[np.isfinite(x)], np.linspace(0.04, 0.84, 17)))
    return np.array([(v, w) for v in at for w in at if v < w]).reshape(-1, 2)


def _rises(x: Array) -> Array:
    """Pairs (v, w) of neighbouring quantiles of `x`, and of those two apart."""
    at = np.unique(np.quantile(x[np.isfinite(x)], [0.05, 0.2, 0.35, 0.5, 0.65, 0.8]))
    return np.concatenate([np.stack([at[:-k], at[k:]], axis=1) for k in (1, 2)])


def _finer(values: Array, kept: Array, count: int, top: float) -> Array:
    """`count` places from two steps of `values` below `kept` to two above, inside (0, top]."""
    if not len(kept):
        return kept
    steps = np.diff(np.unique(values))
    reach = 2 * float(np.median(steps)) if len(steps) else 0.25 * top
    return np.linspace(max(kept.min() - reach, kept.min() / 4), min(kept.max() + reach, top), count)


def _grid(
    u: Array,
    clusters: NDArray[np.integer],
    turn: Array,
    floor: Array,
    x: Array | None = None,
    rises: Array | None = None,
) -> Knots:
    """The admissible pairs of a grid, with no rise, a decline from the start and none at all beside them."""
    top = float(u.max())
    highest = np.zeros(int(clusters.max()) + 1)
    np.maximum.at(highest, clusters, u)
    beyond = np.sort(highest)[-FEWEST_TRIALS]
    sizes = np.zeros_like(u) if x is None else x
    rise = np.array([NO_RISE])
    if x is not None:
        rise = np.concatenate([rise, _rises(x) if rises is None else rises])
    first = np.array([_plateau(u, sizes >= w, clusters) for w in rise[:, 1]])
    rise, first = rise[np.isfinite(first)], first[np.isfinite(first)]
    floor = np.unique(np.append(floor, top))
    turn = np.append(0.0, np.unique(turn[(turn > first.min()) & (turn < beyond)]))
    t, f = (a.ravel() for a in np.meshgrid(turn, floor, indexing="ij"))
    kept = (f - t > top / 20) & ((f == top) | (f < beyond))
    return Knots(rise, np.append(t[kept], np.inf), np.append(f[kept], np.inf), first)


def _plateau(u: Array, learnt: Mask, clusters: NDArray[np.integer]) -> float:
    """The least drift at which three trials have `learnt` (N,), and past which two at most still learn; inf where fewer have."""
    lowest, highest = np.full(int(clusters.max()) + 1, np.inf), np.zeros(int(clusters.max()) + 1)
    np.minimum.at(lowest, clusters[learnt], u[learnt])
    np.maximum.at(highest, clusters[~learnt], u[~learnt])
    return float(max(np.sort(lowest)[FEWEST_TRIALS - 1], np.sort(highest)[-FEWEST_TRIALS]))


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
