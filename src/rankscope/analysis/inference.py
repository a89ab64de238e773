"""Statistical inference: intervals that resample or leave out whole clusters, and p-values of
several tests.

Observations that depend on each other form a cluster and stay together. Letters: R resamples, G
clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.95
FEWEST_SEEDS = 2


# Distributions by the functions of scipy.special that scipy.stats calls, with its values to the
# last bit: importing scipy.stats takes 0.6 s, in every command that plans or concludes.
class normal:
    """N(0, 1)."""

    @staticmethod
    def cdf(x: Any) -> Any:
        return special.ndtr(x)

    @staticmethod
    def sf(x: Any) -> Any:
        """1 - cdf, without cancellation."""
        return special.ndtr(-x)

    @staticmethod
    def ppf(p: Any) -> Any:
        """The quantile; p inside 0 and 1, as below."""
        return special.ndtri(p)


class student:
    """t with so many degrees of freedom; NaN for none."""

    @staticmethod
    def sf(x: Any, degrees: Any) -> Any:
        return special.stdtr(degrees, -x)

    @staticmethod
    def ppf(p: Any, degrees: Any) -> Any:
        return special.stdtrit(degrees, p)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, and what was resampled to get it:
    `clusters` many of `cluster`.

    The bounds are NaN where there were too few clusters to say anything.
    """

    estimate: float
    low: float
    high: float
    cluster: str
    clusters: int

    @property
    def known(self) -> bool:
        """Whether the interval has bounds."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def p(self, value: float) -> float:
        """Two-sided p-value of "the quantity is `value`", from the same t distribution; NaN without
        bounds."""
        if not self.known:
            return np.nan
        degrees = self.clusters - 1
        error = (self.high - self.low) / 2 / float(student.ppf((1 + LEVEL) / 2, degrees))
        if error == 0:
            return float(self.estimate == value)
        return float(2 * student.sf(abs(self.estimate - value) / error, degrees))

    def exp(self) -> Interval:
        """The interval of a quantity whose logarithm this is; an end beyond float64 is infinite."""
        with np.errstate(over="ignore"):
            estimate, low, high = map(float, np.exp([self.estimate, self.low, self.high]))
        return replace(self, estimate=estimate, low=low, high=high)

    def times(self, sign: float) -> Interval:
        """The interval of the quantity times 1 or -1."""
        if sign > 0:
            return self
        return replace(self, estimate=-self.estimate, low=-self.high, high=-self.low)

    def widened(self, error: float) -> Interval:
        """The interval with a standard `error` added that the clusters cannot show; half-widths add
        in quadrature (Zou and Donner 2008, Statistics in Medicine 27, 1693-1702)."""
        if not self.known or not error > 0:
            return self
        own, added = (self.high - self.low) / 2, float(normal.ppf((1 + LEVEL) / 2)) * error
        reach = float(np.hypot(own, added))
        return replace(self, low=self.estimate - reach, high=self.estimate + reach)

    def within(self, low: float, high: float) -> Interval:
        """The same with its bounds cut to what the quantity can be."""
        low = max(self.low, low) if self.known else self.low
        return replace(self, low=low, high=min(self.high, high))

    def __format__(self, spec: str) -> str:
        spec = without_minus_zero(spec or ".2f")
        if not self.known:
            counted = f"{self.clusters} {self.cluster}" + "s" * (self.clusters != 1)
            text = f"{self.estimate:{spec}} (no interval: {counted})"
        else:
            text = f"{self.estimate:{spec}} [{end(self.low, spec)}, {end(self.high, spec)}]"
        return text.replace("-", "−")


def without_minus_zero(spec: str) -> str:
    """The specification of a number's format that prints no -0.00: PEP 682's z, after the sign."""
    if "z" in spec:
        return spec
    sign = spec[:1] if spec[:1] in ("+", "-", " ") else ""
    return f"{sign}z{spec.removeprefix(sign)}"


def end(value: float, spec: str) -> str:
    """An end of an interval as printed: never 0 where it is not, since verdicts rest on its side of
    zero; then by its first digit (-0.0003 for .3f). Below 1e-9 it is rounding."""
    if spec.endswith("%"):
        return f"{end(100 * value, f'{spec[:-1]}f')}%"
    text = format(value, without_minus_zero(spec))
    if abs(value) < 1e-9 or float(text) != 0:
        return text
    sign = "+" if spec.startswith("+") else ""
    return format(value, f"{sign}.{-math.floor(math.log10(abs(value)))}f")


def draws(clusters: int, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each cluster is drawn in each resample: (R, G), rows sum to G."""
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(float)


def stratified_draws(
    strata: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Weights of the clusters in each resample (R, G), each stratum (G,) drawn for itself.

    Of n clusters in a stratum n - 1 are drawn and weighted by n / (n - 1), so that the spread of a
    mean is unbiased however few they are (Rao and Wu 1988, J. American Statistical Association 83,
    231-241). Clusters alone in their strata are drawn together, as one stratum, and a single such
    one with the smallest other: alone it would be always there, and its spread would count as none
    (collapsed strata: Cochran 1977, Sampling Techniques, 5A.12; on the safe side).
    """
    weights = np.ones((resamples, len(strata)))
    for own in _collapsed(strata):
        if (n := len(own)) > 1:
            weights[:, own] = rng.multinomial(n - 1, np.full(n, 1 / n), resamples) * n / (n - 1)
    return weights


def _collapsed(strata: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places of each stratum, those of a single place put together."""
    places = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    several = sorted((own for own in places if len(own) > 1), key=len)
    alone = np.array([own[0] for own in places if len(own) == 1], dtype=np.int64)
    if len(alone) == 1 and several:
        return [np.append(several[0], alone), *several[1:]]
    return [alone, *several] if len(alone) else several


def interval(
    estimate: float, replicates: NDArray[np.float64], cluster: str, clusters: int
) -> Interval:
    """Student interval around `estimate` from the spread of bootstrap `replicates` (R,).

    With G clusters the bootstrap's standard error is too small by sqrt((G - 1) / G) and its tails
    are too light; both are put right (Hesterberg 2015, The American Statistician 69, 371-386).
    For a mean of G clusters this is the t interval exactly, so that three seeds give the wide
    interval that three seeds deserve.
    """
    replicates = replicates[np.isfinite(replicates)]
    if clusters < 2 or len(replicates) < 2 or not np.isfinite(estimate):
        return Interval(float(estimate), np.nan, np.nan, cluster, clusters)
    error = float(np.std(replicates, ddof=1)) * np.sqrt(clusters / (clusters - 1))
    reach = float(student.ppf((1 + LEVEL) / 2, clusters - 1)) * error
    return Interval(
        float(estimate), float(estimate) - reach, float(estimate) + reach, cluster, clusters
    )


def jackknife(
    names: Sequence[Hashable], statistic: Callable[[list[Hashable]], float], cluster: str = "seed"
) -> Interval:
    """Student interval of a `statistic` of clusters, each left out once (Efron and Stein 1981).

    For a mean this is the t interval. It also serves statistics of pairs of clusters
    (U-statistics) and smooth functions of means. No bounds where the statistic is undefined
    without one of the clusters.
    """
    kept = list(names)
    estimate, count = statistic(kept), len(kept)
    without = np.array([statistic([n for n in kept if n != name]) for name in kept])
    if count < 2 or not np.isfinite([estimate, *without]).all():
        return Interval(estimate, np.nan, np.nan, cluster, count)
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    reach = float(student.ppf((1 + LEVEL) / 2, count - 1)) * float(error)
    return Interval(estimate, estimate - reach, estimate + reach, cluster, count)


def percentiles(
    estimate: float, replicates: NDArray[np.float64], cluster: str, clusters: int
) -> Interval:
    """Expanded percentile interval of bootstrap `replicates` (R,), infinity counted, NaN left out.

    With G clusters the plain one is too narrow as Student's t and sqrt(G / (G - 1)) say; the
    percentiles are moved out by as much (Hesterberg 2015, The American Statistician 69, 371-386).
    """
    known = replicates[~np.isnan(replicates)]
    if clusters < 2 or len(known) < 2:
        return Interval(float(estimate), np.nan, np.nan, cluster, clusters)
    reach = student.ppf((1 + LEVEL) / 2, clusters - 1) * np.sqrt(clusters / (clusters - 1))
    tail = float(normal.sf(reach))
    low, high = np.quantile(known, [tail, 1 - tail], method="nearest")
    return Interval(float(estimate), float(low), float(high), cluster, clusters)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down adjustment (1979, Scandinavian J. Statistics 6, 65-70); NaN where there was
    no test.

    Rejecting what lies at or below 0.05 errs anywhere in the family with probability 0.05 at most,
    however the tests depend on each other.
    """
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def cluster_of(rows: pd.DataFrame, otherwise: str) -> tuple[str, pd.Series]:
    """The column of independent repetitions: seeds when there are at least two, else
    `otherwise`."""
    name = "seed" if rows["seed"].nunique() >= FEWEST_SEEDS else otherwise
    return name, rows[name]


def mean_interval(
    values: pd.Series,
    clusters: pd.Series,
    cluster: str,
    *,
    rng: np.random.Generator,
    resamples: int,
) -> Interval:
    """Mean of `values` with whole clusters resampled; NaN values are left out."""
    return mean_intervals(values.to_frame("mean"), clusters, cluster, rng=rng, resamples=resamples)[
        "mean"
    ]


def mean_intervals(
    values: pd.DataFrame,
    clusters: pd.Series,
    cluster: str,
    *,
    rng: np.random.Generator,
    resamples: int,
) -> dict[str, Interval]:
    """Mean of every column, NaN left out. Columns that miss the same clusters share their draws,
    which is faster."""
    codes, names = pd.factorize(clusters.to_numpy())
    numbers = values.to_numpy(dtype=float)  # (N, M)
    held = np.isfinite(numbers)
    sums, counts = np.zeros((2, len(names), numbers.shape[1]))  # (G, M)
    np.add.at(sums, codes, np.where(held, numbers, 0.0))
    np.add.at(counts, codes, held)
    found = {}
    patterns, which = np.unique(counts > 0, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        columns = np.flatnonzero(which.ravel() == number)
        total, count = sums[np.ix_(pattern, columns)], counts[np.ix_(pattern, columns)]
        groups = int(pattern.sum())
        if groups:
            weights = draws(groups, resamples, rng)  # (R, G)
            replicates, means = (
                (weights @ total) / (weights @ count),
                total.sum(axis=0) / count.sum(axis=0),
            )
        else:
            replicates, means = np.empty((0, len(columns))), np.full(len(columns), np.nan)
        for place, column in enumerate(columns):
            name = str(values.columns[int(column)])
            found[name] = interval(float(means[place]), replicates[:, place], cluster, groups)
    return found
