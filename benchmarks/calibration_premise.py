"""Claim: with few seeds the interval of H2's premise covers when configurations are left out one at a
time, and not when trials are resampled.

    python benchmarks/calibration_premise.py [--studies 400]

The premise is the best gain near sr(W) over the best gain anywhere. Simulated as on CoLA in
docs/results/minilm-glue: ranks, six rates, one seed or three; near sr(W) models reach a share of the
best gain, and one middle rate that drifts reaches all of it. Configurations differ a little.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from rankscope.analysis.inference import percentiles, stratified_draws
from rankscope.analysis.threshold.losses import best_by_configuration
from rankscope.analysis.threshold.threshold import premise

SHARES = (0.3, 0.6, 1.0)  # of the best gain, to be had near sr(W)
NOISE, SPREAD = 0.1, 0.1  # of an evaluation, and between configurations, in units of the best gain
SLOW = np.array([0.0, 0.1, 1.0, 0.4, 0.0, 0.0])  # of the share, what each rate reaches near sr(W)
FAST = np.array([0.0, 0.0, 0.3, 1.0, 0.2, 0.0])  # of the best gain, what each reaches away from it


def study(rng: np.random.Generator, share: float, ranks: int, seeds: int) -> pd.DataFrame:
    """One value near sr(W) and one away from it, for each rank, rate and seed."""
    shape = (ranks, len(SLOW), seeds)
    own = 1 + rng.normal(0, SPREAD, (2, ranks, 1, 1))
    near = own[0] * share * SLOW[:, None] + rng.normal(0, NOISE, shape)
    far = own[1] * FAST[:, None] + rng.normal(0, NOISE, shape)
    rank, rate, seed = (index.ravel() for index in np.indices(shape))
    codes = np.arange(rank.size)
    labels = {"configuration": rank, "learning_rate": rate, "seed": seed, "trial_code": codes}
    return pd.concat(
        [pd.DataFrame(labels | {"y": y.ravel(), "near": at}) for y, at in ((near, 1), (far, 0))]
    )


def sides(points: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The best near sr(W) and the best anywhere, per configuration."""
    return best_by_configuration(points[points["near"].eq(1)]), best_by_configuration(points)


def resampled(
    points: pd.DataFrame, shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[float, float]:
    """The interval by percentiles over resampled trials, the best chosen anew in each: what
    `best_by_configuration` does, for all draws at once."""
    near, far = points["y"].to_numpy().reshape(2, *shape)
    drawn = stratified_draws(np.zeros(near.size, dtype=np.int64), 199, rng) > 0
    drawn = drawn.reshape(-1, *shape)  # (199, ranks, rates, seeds)
    seeds = drawn.sum(axis=-1)
    whole = (seeds > 0) & (seeds == seeds.max(axis=-1, keepdims=True))
    best = []
    for y in (near, np.maximum(near, far)):
        means = (y * drawn).sum(axis=-1) / np.maximum(seeds, 1)
        means = np.where(whole, means, -np.inf).max(axis=-1)
        best.append(np.where(whole.any(axis=-1), means, np.nan))
    shares = np.nanmean(best[0], axis=1) / np.nanmean(best[1], axis=1)
    found = percentiles(np.nan, shares, "trial", near.size)
    return found.low, found.high


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    options = parser.parse_args()
    studies = options.studies
    print("| share near sr(W) | ranks | seeds | jackknife over configurations | resampled trials |")
    print("| --- | --- | --- | --- | --- |")
    for share in SHARES:
        for ranks, seeds in ((4, 1), (7, 1), (4, 3)):
            hits = np.zeros(2)
            many = study(np.random.default_rng(0), share, 4000, seeds)  # the same, almost exactly
            truth = float(np.divide(*(side.mean() for side in sides(many))))
            for number in range(options.first, options.first + studies):
                rng = np.random.default_rng([number, ranks, seeds])
                points = study(rng, share, ranks, seeds)
                left_out = premise(*sides(points), 0.0)
                for place, (low, high) in enumerate(
                    (
                        (left_out.low, left_out.high),
                        resampled(points, (ranks, len(SLOW), seeds), rng),
                    )
                ):
                    hits[place] += low <= truth <= high
            covered = " | ".join(f"{100 * hit / studies:.1f} %" for hit in hits)
            print(f"| {share} | {ranks} | {seeds} | {covered} |", flush=True)


if __name__ == "__main__":
    main()
