"""Claim: choosing rates and checkpoints on the rows they are reported on flatters by as much as is
printed here, and `validation_split = 0.5` removes it.

    python benchmarks/selection_bias.py

Simulated, with binomial rows: each row has a difficulty, the same for all models, and a model
answers it rightly or not with errors that it shares with its own other checkpoints (correlation
0.8). Six rates, eight checkpoints, three seeds; the two best rates do not differ.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

ABILITY = np.array([-0.5, 0.3, 0.9, 0.9, 0.6, 0.0])  # of each rate at the end; 0.9: about 0.80
RISE = np.array([0.2, 0.5, 0.7, 0.85, 0.95, 1.0, 1.0, 1.0])  # over the checkpoints
DIFFICULTY, SHARED = 0.5, 0.8
STUDIES, SEEDS = 200, 3


def right(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Which rows are answered rightly: (rates, seeds, checkpoints, rows)."""
    shape = (len(ABILITY), SEEDS, len(RISE), rows)
    own = np.sqrt(SHARED) * rng.normal(size=(*shape[:2], 1, rows))
    own = own + np.sqrt(1 - SHARED) * rng.normal(size=shape)
    able = ABILITY[:, None] * RISE + (1 - RISE) * -0.5
    return able[:, None, :, None] + DIFFICULTY * rng.normal(size=rows) + own > 0


def expected() -> np.ndarray:
    """The accuracy of each rate at each checkpoint on endless rows: (rates, checkpoints)."""
    able = ABILITY[:, None] * RISE + (1 - RISE) * -0.5
    return norm.cdf(able / np.sqrt(1 + DIFFICULTY**2))


def reported(choose: np.ndarray, report: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The metric that a study would print, and the true one of what it chose. Both arrays are
    (rates, seeds, checkpoints)."""
    rate = choose.max(axis=-1).mean(axis=-1).argmax()
    steps = choose[rate].argmax(axis=-1)
    return float(report[rate, np.arange(SEEDS), steps].mean()), float(truth[rate, steps].mean())


def main() -> None:
    truth = expected()
    print("| validation rows | all rows choose and report | half chooses, half reports |")
    print("| --- | --- | --- |")
    for rows in (277, 408, 512, 1043):
        bias = np.zeros((STUDIES, 2))
        for number in range(STUDIES):
            answers = right(np.random.default_rng([rows, number]), rows)
            whole = answers.mean(axis=-1)
            first, second = answers[..., ::2].mean(axis=-1), answers[..., 1::2].mean(axis=-1)
            for place, (choose, report) in enumerate(((whole, whole), (first, second))):
                printed, true = reported(choose, report, truth)
                bias[number, place] = printed - true
        mean, error = bias.mean(axis=0), 2 * bias.std(axis=0) / np.sqrt(STUDIES)
        cells = [f"{m:+.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True)]
        print(f"| {rows} | {' | '.join(cells)} |".replace("-0", "−0"))


if __name__ == "__main__":
    main()
