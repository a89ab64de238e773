"""Claim: a rank that `rankscope suggest` names is worse than the best by more than the margin in
at most 5 % of studies.

    python benchmarks/calibration_suggest.py [--studies 400] [--only "one rank"] [--to FILE.jsonl]

With ``--to`` each study is a line of that file, and studies that stand there are not run again: a
run that was stopped goes on with the same command.
Simulated studies of ranks 1 to 64, two to five seeds: the mean metric rises up to a plateau that
begins at some rank, where the rank below is just beyond the margin or far beyond it; or one rank
alone is best and all others are just beyond the margin (the hardest case). Seeds share what they
have in common; three rates, of which one is better, or all are equally good; noise of each trial,
the same for all ranks or larger for small ones; an accuracy on 277 rows or a real number; a loss.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rankscope.analysis.frames import COMPARISON, SPECTRA, Frames
from rankscope.analysis.suggest import suggest

RANKS = (1, 2, 4, 8, 16, 32, 64)
RATES = (1e-4, 3e-4, 1e-3)
MARGIN = 0.01
BEST = 0.80


@dataclass(frozen=True)
class Scenario:
    """``means``: how much worse than the best each rank is, best rate first; ``noise``: standard
    deviation of a trial; ``flat``: all rates equally good; ``flattered``: so at all ranks but the
    best ones, which only one rate reaches; ``uneven``: small ranks are noisier; ``rows``: of the
    accuracy, 0 for a real number; ``loss``: lower is better."""

    means: tuple[float, ...]
    noise: float = 0.004
    seeds: int = 3
    flat: bool = False
    flattered: bool = False
    uneven: bool = False
    rows: int = 0
    loss: bool = False


EDGE = (0.08, 0.06, 0.04, 0.0101, 0.0, 0.0, 0.0)  # the rank below the plateau is just not enough
PLATEAU = (0.08, 0.04, 0.0, 0.0, 0.0, 0.0, 0.0)
ALONE = (0.0101,) * 3 + (0.0,) + (0.0101,) * 3  # one rank is enough, and the largest just not
SCENARIOS = {
    "one rank alone, the largest just not enough": Scenario(ALONE, noise=0.001),
    "one rank alone, 5 seeds": Scenario(ALONE, noise=0.001, seeds=5),
    "one rank alone, three equal rates": Scenario(ALONE, noise=0.001, flat=True),
    "one rank alone, three equal rates, 5 seeds": Scenario(ALONE, noise=0.001, seeds=5, flat=True),
    "one rank alone, equal rates but for it": Scenario(ALONE, noise=0.001, flattered=True),
    "rank below a plateau just not enough": Scenario(EDGE),
    "just not enough, 2 seeds": Scenario(EDGE, seeds=2),
    "just not enough, 5 seeds": Scenario(EDGE, seeds=5),
    "just not enough, little noise": Scenario(EDGE, noise=0.001),
    "just not enough, much noise": Scenario(EDGE, noise=0.02),
    "just not enough, small ranks noisier, equal rates": Scenario(EDGE, flat=True, uneven=True),
    "just not enough, accuracy on 277 rows": Scenario(EDGE, rows=277),
    "just not enough, a loss": Scenario(EDGE, loss=True),
    "clear plateau from rank 4": Scenario(PLATEAU),
    "clear plateau, 5 seeds": Scenario(PLATEAU, seeds=5),
    "clear plateau, little noise": Scenario(PLATEAU, noise=0.001),
}


def study(scenario: Scenario, number: int) -> Frames:
    """The frames of one simulated study."""
    rng = np.random.default_rng([number, *map(ord, repr(scenario))])
    shared = rng.normal(scale=0.01, size=scenario.seeds)
    sign = -1 if scenario.loss else 1
    rows = []
    for place, (rank, worse) in enumerate(zip(RANKS, scenario.means, strict=True)):
        noise = scenario.noise * (1 + (len(RANKS) - place) / 3 if scenario.uneven else 1)
        for rate in RATES:
            is_flat = scenario.flat or (scenario.flattered and worse > 0)
            lost = 0 if is_flat or rate == RATES[1] else 0.03
            for seed in range(scenario.seeds):
                value = BEST - worse - lost + shared[seed] + rng.normal(scale=noise)
                if scenario.rows:
                    value = round(value * scenario.rows) / scenario.rows
                rows.append((rank, rate, seed, sign * value))
    trials = pd.DataFrame(rows, columns=["rank", "learning_rate", "seed", "best"])
    trials = trials.assign(
        trial=[f"t{i}" for i in range(len(trials))], model="m", task="t", method="lora",
        scaling="alpha/r", status="done", metric="eval_loss" if scenario.loss else "accuracy",
        best_step=1, last=trials["best"], steps=1, diverged_at=np.nan, seconds=1.0,
        constant=sign * 0.5,
    )  # fmt: skip
    metrics = pd.DataFrame({
        "trial": trials["trial"], "step": 1, "epoch": 1.0, "train_loss": 0.0, "eval_loss": 0.0,
        "metric_value": trials["best"],
    })  # fmt: skip
    return Frames(trials, metrics, pd.DataFrame(columns=SPECTRA), pd.DataFrame(columns=COMPARISON))


def suggested(name: str, numbers: range, to: Path | None) -> list[int | None]:
    """The rank that is suggested in each of the studies ``numbers``, None for none."""
    lines = to.read_text().splitlines() if to is not None and to.exists() else []
    known = {(one["scenario"], one["study"]): one["rank"] for one in map(json.loads, lines)}
    found = []
    for number in numbers:
        if (name, number) not in known:
            rank = suggest(study(SCENARIOS[name], number), margin=MARGIN)[0].rank
            known[name, number] = rank
            if to is not None:
                with to.open("a") as file:
                    print(json.dumps({"scenario": name, "study": number, "rank": rank}), file=file)
        found.append(known[name, number])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--only", default="", metavar="WORDS")
    asked = parser.parse_args()
    studies = asked.studies
    print("| scenario | not enough, % of all | none, % | most often suggested |")
    print("| --- | --- | --- | --- |")
    for name, scenario in SCENARIOS.items():
        if asked.only not in name:
            continue
        found = Counter(suggested(name, range(studies), asked.to))
        worse = dict(zip(RANKS, scenario.means, strict=True))
        bad = sum(n for rank, n in found.items() if rank and worse[rank] > MARGIN)
        often = ", ".join(
            f"{rank} ({n / studies:.0%})" for rank, n in found.most_common(3) if rank is not None
        )
        print(
            f"| {name} | {100 * bad / studies:.1f} | {100 * found[None] / studies:.0f} | {often} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
