"""Claim: the intervals of b and s*_r cover what they say, and no threshold is claimed where there is none.

    python benchmarks/calibration.py run calibration.jsonl       # about 0.5 s a study on one core; stop and go on at will
    python benchmarks/calibration.py table calibration.jsonl > docs/results/calibration/README.md

Simulated studies with known truth (tests/simulate.py) go through the estimators as a store's frames do, and through naive ones
beside them (naive.py). Four sets: "threshold", 1,000 studies with one; "none", 1,000 without, in four shapes; "power", a grid of
effect sizes; "seeds", few and many repetitions. One JSON line a study.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import naive
from calibration_table import table

from rankscope.analysis.frames import Frames
from rankscope.analysis.growth import growth
from rankscope.analysis.selection import chosen
from rankscope.analysis.threshold import checkpoints, thresholds
from simulate import Truth, study

SIZES = {"threshold": 1000, "none": 1000, "power": 1400, "seeds": 800}
SHAPES = (
    "flat",
    "flat after a rise",
    "decline from the start",
    "decline from the start, to a floor",
    "decline from the start, after a rise",
)
FALLS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)  # of the metric between the threshold and the end of the range
NOISE = 0.02  # of the power grid, per trial and per evaluation


def planned(name: str, index: int) -> tuple[Truth, dict[str, Any], dict[str, Any]]:
    """The truth of a study, the size of the study, and what the tables sort it by."""
    rng = np.random.default_rng([sum(map(ord, name)), index])
    noise = float(np.exp(rng.uniform(np.log(0.005), np.log(0.05))))
    truth: dict[str, Any] = {
        "b": float(rng.uniform(0, 1)),
        "b_layers": 0.03,
        "direction": int(rng.choice([-1, 1])),
        "noise": noise,
        "trial_noise": noise * float(rng.choice([0.0, 1.0, 2.0])),
        "warmup": float(rng.choice([0.0, 0.2])),
        "learnt": float(np.exp(rng.uniform(np.log(0.002), np.log(0.01)))),
        "speed": float(rng.choice([3.0, 6.0])),
        "threshold": float(rng.uniform(0.4, 1.4)),
        "decline": float(np.exp(rng.uniform(np.log(0.08), np.log(0.6)))),
    }
    size = {"seeds": int(rng.choice([3, 5])), "evaluations": int(rng.choice([5, 10])), "full": False}
    label: dict[str, Any] = {}
    if name == "none":
        shape = SHAPES[index % len(SHAPES)]
        label = {"shape": shape}
        flat = shape.startswith("flat")
        truth |= {"threshold": None if flat else 0.0, "warmup": 0.2 if "rise" in shape else 0.0}
        truth |= {"decline": float(rng.uniform(0.3, 0.6) if "floor" in shape else rng.uniform(0.02, 0.1))}
    elif name == "power":
        fall = FALLS[index % len(FALLS)]
        seeds = (1, 3, 5)[index // len(FALLS) % 3]
        label = {"fall": fall}
        truth |= {
            "threshold": 0.9,
            "noise": NOISE,
            "trial_noise": NOISE,
            "decline": fall / (2.5 - 0.9),
            "warmup": 0.0,
        }
        size |= {"seeds": seeds, "evaluations": 5}
    elif name == "seeds":
        size |= {"seeds": (1, 2, 3, 10)[index % 4], "evaluations": 5}
    return Truth(**truth), size, label


def measured(name: str, index: int, resamples: int) -> dict[str, Any]:
    """One study's truth, and what ours and the naive estimators say of it."""
    truth, size, label = planned(name, index)
    frames = Frames(**study(truth, seed=index + 10_000 * list(SIZES).index(name), **size))
    rng = np.random.default_rng([index, 1])
    start = time.process_time()
    b = growth(chosen(frames.trials), frames.spectra, rng=rng, resamples=resamples)
    found = thresholds(
        frames.trials, frames.metrics, frames.spectra, frames.drifts, rng=rng, resamples=resamples
    )[0]
    seconds = time.process_time() - start
    fit = found.fit
    rows = checkpoints(frames.trials, frames.metrics, frames.drifts)
    u, y = rows["drift"].abs().to_numpy(dtype=float), rows["metric_value"].to_numpy(dtype=float)
    own = b.points.assign(seed=b.points["seed"])
    line = {
        "set": name,
        "index": index,
        **label,
        **size,
        "threshold": truth.threshold,
        "decline": truth.decline,
        "noise": truth.noise,
        "trial_noise": truth.trial_noise,
        "warmup": truth.warmup,
        "direction": truth.direction,
        "true_b": truth.b,
        "range": abs(found.reach),
        "b": [b.overall.estimate, b.overall.low, b.overall.high],
        "b_cluster": b.overall.cluster,
        "claimed": found.identified,
        "right_way": math.copysign(1, found.reach) == truth.direction,
        "p_flat": found.p_flat,
        "p_straight": found.p_straight,
        "t": [fit.turn, fit.low, fit.high] if fit else None,
        "naive_b": naive.exponent(own, rng, resamples),
        "naive_t": naive.grid_search(u, y, rng, resamples),
        "naive_line": naive.straight_line(u, y),
        "seconds": seconds,
    }
    return line


def run(path: Path, sets: list[str], resamples: int, most: int | None) -> None:
    """Adds the lines that `path` lacks."""
    done = {(line["set"], line["index"]) for line in lines(path)} if path.exists() else set()
    with path.open("a", encoding="utf-8") as out:
        for name in sets:
            for index in range(min(SIZES[name], most or SIZES[name])):
                if (name, index) not in done:
                    out.write(json.dumps(measured(name, index, resamples)) + "\n")
                    out.flush()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines only: the last one may be half written."""
    for text in path.read_text(encoding="utf-8").splitlines():
        if text.endswith("}"):
            yield json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=["run", "table"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--resamples", type=int, default=999)
    parser.add_argument("--most", type=int, help="studies of each set, for a quick look")
    options = parser.parse_args()
    if options.do == "run":
        run(options.path, options.sets, options.resamples, options.most)
    else:
        print(table(pd.DataFrame(lines(options.path))))


if __name__ == "__main__":
    main()
