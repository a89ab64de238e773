"""What a rank is worth at a rate that was chosen on the seeds that are compared.

A rate chosen and judged on the same seeds flatters a rank, the more of its rates do about as well.
So each seed counts at the rate that is best over the *other* seeds. That takes the flattery from
each value, not from all of them together: a rate that shines on seeds 1 and 2 by chance is chosen
for both, so values of one rank are correlated between seeds (by 0.24 for three seeds and three
equal rates), and Student's interval, which supposes that they are not, is too short. It is widened
by what equal rates need, as many as may be as good as the chosen one: `widening`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.inference import FEWEST_SEEDS, LEVEL, student

FEWEST_WITHOUT_SPREAD = 3  # seeds: on few rows two equal differences are not rare by chance
NUMBERS = 2**22  # draws for a widening: they give three digits of it
SHOWN = (
    0.99  # level at which a rate counts as worse. At 0.95 equal rates are left out too often: 6 %
)


@dataclass(frozen=True)
class Choice:
    """How a rank's rate was chosen: among ``rates`` that may be equally good; ``mixed``: rates with
    as many seeds as the chosen one have other seeds, so that nothing can be left out."""

    rates: int = 1
    mixed: bool = False


def left_out(
    trials: pd.DataFrame, chosen: pd.DataFrame, sign: float
) -> tuple[pd.DataFrame, dict[int, Choice]]:
    """``chosen`` with ``reported`` of each seed at the rate that is best over its rank's other
    seeds, and rank -> its choice. ``trials``: all of one group, with ``chosen`` among them;
    ``sign``: -1 where lower is better. A rank with one seed, or one rate, keeps its values."""
    key = ["model", "task", "scaling", "method", "rank"]
    own = trials.merge(chosen[key].drop_duplicates(), on=key)
    found, choices = chosen.copy(), dict[int, Choice]()
    for rank in own["rank"].unique():
        part = own[own["rank"].eq(rank)]
        choices[int(rank)] = Choice()
        if part["learning_rate"].nunique() < 2:
            continue
        table = sign * part.pivot_table(index="learning_rate", columns="seed", values="best")
        seeds = table.notna().sum(axis=1)
        table = table[seeds.eq(seeds.max())].dropna(axis=1, how="all")  # a rate with fewer loses
        mixed = bool(table.isna().any(axis=None))
        choices[int(rank)] = Choice(mixed=mixed)
        if len(table) < 2 or table.shape[1] < FEWEST_SEEDS or mixed:
            continue
        values = table.to_numpy(dtype=float)  # (rates, seeds)
        choices[int(rank)] = Choice(rates=_as_good(values))
        reported = part.pivot_table(index="learning_rate", columns="seed", values="reported")
        told = reported.loc[table.index, table.columns].to_numpy(dtype=float)
        for at, seed in enumerate(table.columns):
            best = np.delete(values, at, axis=1).mean(axis=1).argmax()
            own_seed = found["rank"].eq(rank) & found["seed"].eq(seed)
            found["reported"] = found["reported"].mask(own_seed, told[best, at])
    return found, choices


def _as_good(values: NDArray[np.float64]) -> int:
    """How many rates, of ``values`` (rates, seeds), are not shown to be worse than the best one,
    itself included."""
    best = values[values.mean(axis=1).argmax()]
    return sum(not upper(own - best, level=SHOWN) < 0 for own in values)


def upper(differences: NDArray[np.float64], rates: int = 1, level: float = LEVEL) -> float:
    """Upper end of the one-sided t interval of a mean of differences (N,), N seeds, widened for a
    choice among ``rates``; NaN for fewer than two, and for two that are the same number."""
    count = len(differences)
    if count < FEWEST_SEEDS:
        return math.nan
    spread = float(np.std(differences, ddof=1))
    if count < FEWEST_WITHOUT_SPREAD and np.ptp(differences) == 0:
        return math.nan
    reach = float(student.ppf(level, count - 1)) * spread / math.sqrt(count)
    return float(np.mean(differences)) + widening(count, rates) * reach


@cache
def widening(seeds: int, rates: int) -> float:
    """The factor by which Student's one-sided 95 % interval is too short for values of ``seeds``,
    each at the rate that is best over the other seeds, if ``rates`` are equally good (the worst
    case): the 95 % quantile of their t over Student's, from fixed draws of normal noise."""
    if rates == 1:
        return 1.0
    draws = max(20_000, NUMBERS // (seeds * rates))
    noise = np.random.default_rng([seeds, rates]).standard_normal((draws, rates, seeds))
    others = noise.sum(axis=2, keepdims=True) - noise
    values = np.take_along_axis(noise, others.argmax(axis=1)[:, None], axis=1)[:, 0]
    t = values.mean(axis=1) / values.std(axis=1, ddof=1) * math.sqrt(seeds)
    return max(1.0, float(np.quantile(t, LEVEL) / student.ppf(LEVEL, seeds - 1)))
