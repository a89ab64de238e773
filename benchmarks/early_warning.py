"""Claim: none beforehand. Does drift, or the size of the update, warn of a loss before it shows?

    python benchmarks/early_warning.py            # the tables of docs/results/early-warning

From the stored trials of docs/results/minilm-glue/data. A trial *loses* at the first evaluation
that stands ``LOSS`` or more below its own best so far. It is *healthy* where it learnt and never
did. What never rose ``LOSS`` above the constant answer has nothing to lose and is counted apart.

A level is chosen on some trials and judged on others: on each task the level of the other two, and
on seeds 1 and 2 that of seed 0. It is the lowest with false alarms in at most ``ALLOWED`` of the
healthy trials that it is chosen from. A warning counts as early if it is given at a step before the
first evaluation that shows the loss. Intervals: Wilson for shares, all of 95 %; of the median lead
by order statistics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom, rankdata
from scipy.stats import norm as gaussian

STUDY = Path(__file__).resolve().parents[1] / "docs" / "results" / "minilm-glue"
LOSS = 0.05  # of the task's metric
ALLOWED = 0.10
SIGNALS = {"drift": "|sr(W + dW) / sr(W) - 1|", "size": "||dW||_F / ||W||_F"}


@dataclass(frozen=True)
class Trial:
    """One stored trial: its signals by step (steps, values), and the step of its loss."""

    name: str
    task: str
    seed: int
    rate: float
    steps: int
    signals: Mapping[str, tuple[np.ndarray, np.ndarray]]
    learnt: bool
    lost_at: float  # inf where it never did
    rho: float  # median sigma_1(dW) / sigma_1(W), at the one step where dW's spectrum is stored
    rho_step: float

    @property
    def healthy(self) -> bool:
        return self.learnt and math.isinf(self.lost_at)

    @property
    def loses(self) -> bool:
        return self.learnt and math.isfinite(self.lost_at)

    def warned_at(self, signal: str, level: float) -> float:
        """The first step at which the signal stands above the level; inf where none does."""
        steps, values = self.signals[signal]
        above = steps[values > level]
        return float(above[0]) if len(above) else math.inf


def load() -> list[Trial]:
    """All trials of the study."""
    data = STUDY / "data"
    trials, metrics, drifts, spectra = (
        pd.read_parquet(data / f"{name}.parquet")
        for name in ("trials", "metrics", "drifts", "spectra")
    )
    content = json.loads((STUDY / "conclusions.json").read_text())
    thresholds = content["verdicts"][1]["numbers"]["thresholds"]
    constant = {one["task"]: one["constant"] for one in thresholds}
    rho = _rho(spectra)
    curves, signals = dict(list(metrics.groupby("trial"))), dict(list(drifts.groupby("trial")))
    found = []
    for one in trials.itertuples():
        curve = curves[one.trial].sort_values("step")
        value, steps = curve["metric_value"].to_numpy(), curve["step"].to_numpy()
        best = np.maximum.accumulate(value)
        risen = best >= constant[one.task] + LOSS
        lost = steps[risen & (value <= best - LOSS)]
        signal = signals[one.trial].sort_values("step")
        at = signal["step"].to_numpy()
        own = {"drift": np.abs(np.expm1(signal["drift"])), "size": signal["size"]}
        found.append(
            Trial(
                one.trial,
                one.task,
                int(one.seed),
                float(one.learning_rate),
                int(one.steps),
                {name: (at, np.asarray(values)) for name, values in own.items()},
                bool(risen.any()),
                float(lost[0]) if len(lost) else math.inf,
                *rho.get(one.trial, (math.nan, math.nan)),
            )
        )
    return found


def _rho(spectra: pd.DataFrame) -> dict[str, tuple[float, float]]:
    norms = spectra.pivot_table(index=["trial", "layer"], columns="matrix", values="spectral_norm")
    ratio = (norms["dW"] / norms["W"]).groupby("trial").median()
    step = spectra[spectra["matrix"] == "dW"].groupby("trial")["step"].first()
    return {name: (float(ratio[name]), float(step[name])) for name in ratio.index}


def chosen_level(trials: Sequence[Trial], signal: str) -> float:
    """The lowest level with false alarms in at most ``ALLOWED`` of the healthy trials."""
    peaks = np.sort([one.signals[signal][1].max() for one in trials if one.healthy])
    return float(peaks[math.ceil((1 - ALLOWED) * len(peaks)) - 1])


def wilson(count: int, total: int) -> str:
    """``3 of 12: 25 % [9, 53]``."""
    if total == 0:
        return "0 of 0"
    z, share = gaussian.ppf(0.975), count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return f"{count} of {total}: {share:.0%} [{100 * low:.0f}, {100 * high:.0f}]"


def median_interval(values: Sequence[float]) -> str:
    """The median and its 95 % interval from order statistics, where there are six values."""
    ordered, n = sorted(values), len(values)
    if not n:
        return "none"
    k = int(binom.ppf(0.025, n, 0.5))
    said = f"{np.median(ordered):.0%}"
    return said if n < 6 else f"{said} [{ordered[k - 1]:.0%}, {ordered[n - k]:.0%}]"


def judged(trials: Sequence[Trial], signal: str, level: float) -> str:
    """False alarms, warnings before the loss and their lead, as a table's cells."""
    healthy = [one for one in trials if one.healthy]
    losing = [one for one in trials if one.loses]
    false = sum(math.isfinite(one.warned_at(signal, level)) for one in healthy)
    leads = [
        (one.lost_at - at) / one.steps
        for one in losing
        if (at := one.warned_at(signal, level)) < one.lost_at
    ]
    return (
        f"{wilson(false, len(healthy))} | {wilson(len(leads), len(losing))} | "
        f"{median_interval(leads)}"
    )


def area(positive: Sequence[float], negative: Sequence[float]) -> str:
    """The chance that one of ``positive`` exceeds one of ``negative``, ties half; Hanley's error."""
    p, n = len(positive), len(negative)
    if not p or not n:
        return "no pairs"
    ranks = rankdata([*positive, *negative])[:p]
    a = (ranks.sum() - p * (p + 1) / 2) / (p * n)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + (p - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (p * n))
    return f"{a:.2f} [{max(0, a - 1.96 * error):.2f}, {min(1, a + 1.96 * error):.2f}]"


def main() -> None:
    trials = load()
    tasks = sorted({one.task for one in trials})
    print("| task | trials | nothing learnt | healthy | lose |\n| --- | --- | --- | --- | --- |")
    for task in tasks:
        own = [one for one in trials if one.task == task]
        counts = (sum(not one.learnt for one in own), sum(one.healthy for one in own))
        print(f"| {task} | {len(own)} | {counts[0]} | {counts[1]} | {sum(t.loses for t in own)} |")
    print("\n| signal | chosen on | level | judged on | false alarms | early warnings | lead |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for signal in SIGNALS:
        for task in tasks:
            level = chosen_level([t for t in trials if t.task != task], signal)
            cells = judged([t for t in trials if t.task == task], signal, level)
            print(f"| {signal} | other tasks | {level:.3g} | {task} | {cells} |")
        level = chosen_level([t for t in trials if t.seed == 0], signal)
        cells = judged([t for t in trials if t.seed != 0], signal, level)
        print(f"| {signal} | seed 0 | {level:.3g} | seeds 1, 2 | {cells} |")
        print(f"| {signal} | all | {chosen_level(trials, signal):.3g} | not judged | | | |")
    print("\n| known | chance that it is higher in a trial that loses |\n| --- | --- |")
    for task in tasks:
        healthy = [one for one in trials if one.task == task and one.healthy]
        later = [t for t in trials if t.task == task and t.loses and t.rho_step < t.lost_at]
        losing = [one for one in trials if one.task == task and one.loses]
        rho = area([t.rho for t in later], [t.rho for t in healthy])
        rate = area([t.rate for t in losing], [t.rate for t in healthy])
        print(f"| rho at its stored step, before the loss; {task}, {len(later)} trials | {rho} |")
        print(f"| the learning rate alone; {task}, {len(losing)} trials | {rate} |")
        for signal in SIGNALS:
            before = [_before(t, signal) for t in losing]
            peaks = [float(t.signals[signal][1].max()) for t in healthy]
            print(f"| {signal}, highest before the loss; {task} | {area(before, peaks)} |")


def _before(trial: Trial, signal: str) -> float:
    steps, values = trial.signals[signal]
    return float(values[steps < trial.lost_at].max(initial=0.0))


if __name__ == "__main__":
    main()
