"""Along the path t dW of edited trials: the drift at which a share of the gain is lost, and the
loss at a drift (H6).

docs/analysis.md has the definitions. Letters: T trials, P points of a path, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from rankscope.analysis.inference import LEVEL, Interval, normal, student
from rankscope.analysis.interventions import Array, Edited, Resamples, over_trials, unedited

# Trials without which no interval of a median covers 95 %: the extremes of n hold it with a
# probability of 1 - 2^(1 - n) (Conover 1999, section 3.2), and redrawn trials lie between them.
FEWEST = 6


@dataclass(frozen=True)
class Dose:
    """The drift along the path t dW at which the share q of a trial's gain is lost: u, median over
    trials.

    Infinite where most trials never lose it on their path (right-censored). ``longest``: the
    largest u that a trial's path reaches, beyond which nothing is known.
    """

    q: float
    u: Interval
    censored: int
    longest: float


def dose(
    edited: Edited,
    trials: list[str],
    *,
    q: float = 0.5,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Dose:
    """u*_q along the path of growing scales, of these trials.

    The interval is by percentiles, infinity counted, moved out for few trials as Student's t says
    (Hesterberg 2015; the draws' variance is unbiased, so that no factor for it is needed). There is
    none of fewer than ``FEWEST`` trials.
    """
    own = unedited(edited).query("trial in @trials").reset_index()
    drawn = Resamples.draw(own, len(edited.labels), rng=rng, resamples=resamples)
    zero = edited.sign * edited.constant()
    plain, again = _goodness(edited, drawn)
    crossings, redone, reached = [], [], []
    for index, u in _paths(edited, own["trial"].tolist()):
        crossings.append(_crossing(u, plain[index, 0], zero, q))
        redone.append([_crossing(u, y, zero, q) for y in again[index].T])
        reached.append(u.max())
    found, values = np.array(crossings), np.array(redone).T  # (T,), (R, T)
    medians = np.array([_median(found, w) for w in drawn.trials])
    medians += _row_error(values, rng) * rng.normal(size=len(medians))
    low = high = np.nan
    if len(found) >= FEWEST and drawn.degrees > 0:
        tail = float(normal.sf(student.ppf((1 + LEVEL) / 2, drawn.degrees)))
        low, high = np.quantile(medians, [tail, 1 - tail], method="closest_observation")
    middle = _median(found, np.ones(len(found)))
    return Dose(
        q,
        Interval(middle, float(low), float(high), "trial", len(found)),
        int(np.isinf(found).sum()),
        float(max(reached)),
    )


def _row_error(values: Array, rng: np.random.Generator) -> float:
    """Standard error of a median over trials that comes of the rows they share; `values` (R, T),
    rows redrawn.

    As in `over_trials`: the variance with one draw of rows for all trials, less that with a draw
    for each.
    """
    T = values.shape[1]
    one = np.ones(T)
    together = np.array([_median(line, one) for line in values])
    apart = np.array([_median(line, one) for line in rng.permuted(values, axis=0)])
    spreads = [x[np.isfinite(x)].var() if np.isfinite(x).any() else 0.0 for x in (together, apart)]
    return float(np.sqrt(max(0.0, spreads[0] - spreads[1]) * T / max(1, T - 1)))


def loss_at(
    edited: Edited, trials: list[str], u: float, *, rng: np.random.Generator, resamples: int = 1000
) -> tuple[Interval, int]:
    """Mean loss where the path of growing scales reaches the drift u, and how many paths end before
    it.

    A path that ends before counts with its last value, so that the loss is a lower bound.
    """
    own = unedited(edited).query("trial in @trials").reset_index()
    drawn = Resamples.draw(own, len(edited.labels), rng=rng, resamples=resamples)
    plain, again = _goodness(edited, drawn)
    losses, redone, short = [], [], 0
    for index, place in _paths(edited, own["trial"].tolist()):
        short += bool(place.max() < u)
        losses.append(plain[index[0], 0] - _value(place, plain[index, 0], u))
        redone.append([y[0] - _value(place, y, u) for y in again[index].T])
    return over_trials(np.array(losses), np.array(redone), drawn), short


def _goodness(edited: Edited, drawn: Resamples) -> tuple[Array, Array]:
    """The metric with the sign that makes greater better: on the rows as they are (V, 1), and on
    redrawn ones (V, R)."""
    return edited.sign * edited.values(), edited.sign * edited.values(drawn.rows)


def _value(place: Array, y: Array, u: float) -> float:
    """The falling fit of y over its places, at u; its last value beyond them."""
    order = np.argsort(place, kind="stable")
    return float(
        np.interp(u, place[order], scipy.optimize.isotonic_regression(y[order], increasing=False).x)
    )


def _paths(edited: Edited, trials: list[str]) -> Iterator[tuple[NDArray[np.int64], Array]]:
    """Per trial: rows of the table with t >= 1, by t, and how far each lies from sr(W)."""
    path = edited.table.query("family == 'scale' and level >= 1").sort_values("level")
    for name in trials:
        part = path[path["trial"] == name]
        yield part.index.to_numpy(), part["log_drift"].abs().to_numpy()


def _crossing(u: Array, y: Array, zero: float, q: float) -> float:
    """Where the falling fit of y over u passes zero + (1 - q) (y of t = 1 - zero); infinite if it
    does not."""
    order = np.argsort(u, kind="stable")
    place, fit = u[order], scipy.optimize.isotonic_regression(y[order], increasing=False).x
    level = zero + (1 - q) * (y[0] - zero)
    below = np.flatnonzero(fit <= level)
    if y[0] <= zero or not len(below):
        return np.inf
    k = int(below[0])
    if k == 0:
        return float(place[0])
    share = (fit[k - 1] - level) / (fit[k - 1] - fit[k])
    return float(place[k - 1] + share * (place[k] - place[k - 1]))


def _median(values: Array, weights: Array) -> float:
    """The least value that half of the weight does not exceed."""
    order = np.argsort(values)
    mass = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(mass, mass[-1] / 2)])
