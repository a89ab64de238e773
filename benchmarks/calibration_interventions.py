"""Do the intervals of paired changes and of the dose along a path cover the truth?

    python benchmarks/calibration_interventions.py [--studies 400]

Simulated: trials of 4 configurations x 3 seeds (or one seed, 12 configurations), 512 rows
that differ in how hard they are, correlated between variants of a trial and between trials,
trials that differ in their level, in their change and in their dose. The truth is the mean
over new trials and new rows.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from scipy import stats

from rankscope.analysis.interventions import Edited, changes
from rankscope.analysis.paths import dose

SCALES = (1.0, 1.5, 2.0, 3.0, 4.5, 6.5, 9.0)
ROWS, RESAMPLES = 512, 300


def study(rng: np.random.Generator, *, seeds: int, change: float, spread: float) -> Edited:
    """Probit rows: right where level of the trial + ease of the row + noise exceeds 0."""
    configurations = 12 // seeds
    labels = (np.arange(ROWS) % 2).astype(float)
    ease = rng.normal(0, 0.8, ROWS)
    lines, answers = [], []
    for trial in range(12):
        luck = 0.6 * rng.normal(size=ROWS)  # what a trial's variants share
        level, own_change = 1.2 + rng.normal(0, 0.1), change + rng.normal(0, spread)
        half = 1.2 * np.exp(rng.normal(0, spread))
        for family, t in [*(("scale", s) for s in SCALES), ("restore", 0.0)]:
            u = np.log(max(t, 1.0))
            shift = own_change if family == "restore" else -level * min(1.0, u / half / 2)
            right = level + shift + ease + luck + 0.8 * rng.normal(size=ROWS) > 0
            answers.append(np.where(right, labels, 1 - labels))
            lines.append(
                {
                    "trial": str(trial), "model": "m", "task": "t", "method": "lora",
                    "rank": trial % configurations, "scaling": "alpha/r", "learning_rate": 1e-3,
                    "seed": trial // configurations, "family": family, "level": t, "log_drift": -u,
                    "rho": t,
                }
            )  # fmt: skip
    return Edited(pd.DataFrame(lines), np.array(answers), labels, "accuracy")


def truth(*, change: float, spread: float) -> tuple[float, float]:
    """Mean change and median dose, over trials and rows without end."""
    rng = np.random.default_rng(1)
    level = 1.2 + rng.normal(0, 0.1, 400_000)
    noise = np.sqrt(0.8**2 + 0.6**2 + 0.8**2)
    own, edited = (
        stats.norm.cdf(x / noise)
        for x in (level, level + change + rng.normal(0, spread, len(level)))
    )
    half = 1.2 * np.exp(rng.normal(0, spread, len(level)))
    # the fall is linear in the probit, and paths are read between their points: follow both
    u = np.log(SCALES)
    y = stats.norm.cdf(level[:, None] * (1 - np.minimum(1, u / half[:, None] / 2)) / noise)
    wanted = 0.5 + (own - 0.5) / 2
    place = np.array(
        [np.interp(-w, -row, u, right=np.inf) for w, row in zip(wanted[:20000], y, strict=False)]
    )
    return float((edited - own).mean()), float(np.median(place))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    options = parser.parse_args()
    print("seeds  change  spread   covered: change  dose   mean width: change")
    for seeds, change, spread in ((3, 0.0, 0.0), (3, -0.3, 0.15), (3, -0.3, 0.3), (1, -0.3, 0.15)):
        wanted, place = truth(change=change, spread=spread)
        covered, widths = np.zeros(2), []
        for number in range(options.first, options.first + options.studies):
            rng = np.random.default_rng((seeds, int(100 * spread), number))
            given = study(rng, seeds=seeds, change=change, spread=spread)
            trials = given.table["trial"].unique().tolist()
            table = changes(given, trials, rng=rng, resamples=RESAMPLES).set_index("family")
            found = table.loc["restore", "change"]
            along = dose(given, trials, rng=rng, resamples=RESAMPLES).u
            covered += [found.low <= wanted <= found.high, along.low <= place <= along.high]
            widths.append(found.high - found.low)
        shares = covered / options.studies
        print(
            f"{seeds:5} {change:7} {spread:7} {shares[0]:17.1%} {shares[1]:6.1%} "
            f"{np.mean(widths):15.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
