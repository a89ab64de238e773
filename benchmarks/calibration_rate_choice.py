"""Claim: a rank that is not enough is suggested in at most 5 % of studies also where rates are about
equally good, which Student's interval at rates chosen on the other seeds does not hold.

    python benchmarks/calibration_rate_choice.py [--studies 20000]

The rule of rankscope.analysis.suggest written again for all studies at once, on normal noise: seven
ranks, of which the fourth is best and the others are just beyond the margin. Printed, in % of
studies that suggest another: at the rate known to be best; each seed at the rate best over the
others, with Student's interval; the same, widened. Last, a single rank against one without noise.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rankscope.analysis.rate_choice import SHOWN, widening

Values = NDArray[np.float64]  # (studies, ranks, rates, seeds)
MARGIN, WORSE, NOISE, BEST = 0.01, 0.0101, 0.001, 3
CASES = ("one clearly best", "equal", "equal but for the best rank", "0.001 apart")


def lost(case: str, rates: int) -> NDArray[np.float64]:
    """(7, rates): how much each rate costs each rank."""
    apart = 0.001 * np.abs(np.arange(rates) - 1.0)
    clear = np.where(apart > 0, 0.03, 0.0)
    table = {"one clearly best": clear, "0.001 apart": apart}.get(case, np.zeros(rates))
    found = np.tile(table, (7, 1))
    if case == "equal but for the best rank":
        found[BEST] = clear
    return found


def left_out(x: Values) -> NDArray[np.float64]:
    """(studies, ranks, seeds): each seed at the rate that is best over the others."""
    best = (x.sum(-1, keepdims=True) - x).argmax(2)
    return np.take_along_axis(x, best[:, :, None, :], 2)[:, :, 0, :]


def upper(d: NDArray[np.float64], level: float = 0.95, wider: object = 1.0) -> NDArray[np.float64]:
    """Of differences (..., seeds)."""
    count = d.shape[-1]
    reach = stats.t.ppf(level, count - 1) * d.std(-1, ddof=1) / np.sqrt(count)
    return d.mean(-1) + np.asarray(wider) * reach


def as_good(x: Values) -> NDArray[np.int64]:
    """(studies, ranks): rates that are not shown to be worse than the best."""
    top = np.take_along_axis(x, x.mean(-1).argmax(2)[:, :, None, None], 2)
    return (upper(x - top, SHOWN) >= 0).sum(2)


def wrong(values: NDArray[np.float64], rates: NDArray[np.int64]) -> float:
    """The share of studies, in %, that suggest another rank than ``BEST`` and those above it."""
    ranks, seeds = values.shape[1:]
    table = np.array([1.0, *(widening(seeds, k) for k in range(1, int(rates.max()) + 1))])
    wider = table[np.maximum(rates[:, :, None], rates[:, None, :])]
    bound = upper(values[:, None] - values[:, :, None], wider=wider)  # [own, other]
    bound[:, range(ranks), range(ranks)] = -np.inf
    fine = bound.max(2) <= MARGIN
    enough = np.cumprod(fine[:, ::-1], axis=1).sum(1)  # from the largest down
    return 100 * float(np.mean((enough > 0) & (enough != ranks - BEST)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=20_000)
    studies = parser.parse_args().studies
    print("| rates | case | seeds | known | Student's | widened |\n|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for rates in (3, 6):
        for case in CASES:
            for seeds in (2, 3, 5):
                means = -WORSE * (np.arange(7) != BEST)[:, None] - lost(case, rates)
                noise = rng.normal(scale=NOISE, size=(studies, 7, rates, seeds))
                x = means[:, :, None] + noise
                one = np.ones((studies, 7), dtype=int)
                known, chosen = x[:, :, 1], left_out(x)
                said = wrong(known, one), wrong(chosen, one), wrong(chosen, as_good(x))
                print(f"| {rates} | {case} | {seeds} |", " | ".join(f"{v:.1f}" for v in said), "|")
    for rates in (2, 3, 6):
        for seeds in (2, 3, 5):
            x = rng.normal(size=(studies, 1, rates, seeds))
            own = -left_out(x)[:, 0]
            table = np.array([1.0, *(widening(seeds, k) for k in range(1, rates + 1))])
            plain, wider = (upper(own, wider=w) < 0 for w in (1.0, table[as_good(x)[:, 0]]))
            said = f"{100 * plain.mean():.1f} | {100 * wider.mean():.1f}"
            print(f"| {rates} | equal, beside a rank without noise | {seeds} | 5.0 | {said} |")


if __name__ == "__main__":
    main()
