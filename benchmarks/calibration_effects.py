"""The studies of `calibration.py` on H1 (the exponent), H3 (slopes inside trials), H4 (the
contrast) and H5 (best rates)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from rankscope.analysis.alignment import contrast
from rankscope.analysis.dynamics import KNOT, slopes
from rankscope.analysis.frames import Frames
from rankscope.analysis.growth import growth
from rankscope.analysis.rates import rates
from simulate import Truth, study

RESULT = dict[str, Any]


def pairs(rng: np.random.Generator, resamples: int, *, seeds: int, drop: int = 0) -> RESULT:
    """H4: cosines of pairs with effects of both trials; `drop` seeds have no full fine-tune."""
    gap = float(rng.uniform(-0.2, 0.1))
    lora, full = rng.normal(0, 0.03, (2, seeds))
    rows = []
    for s in range(seeds):
        for other in range(seeds - drop):
            if s != other:
                rows.append(
                    ("lora", s, other, 0.2 + gap + lora[s] + full[other] + rng.normal(0, 0.02))
                )
                if s < other:
                    rows.append(
                        ("full", s, other, 0.2 + full[s] + full[other] + rng.normal(0, 0.02))
                    )
    table = pd.DataFrame(rows, columns=["kind", "seed", "seed_reference", "cosine"])
    found = contrast(table[table["kind"].eq("lora")], table[table["kind"].eq("full")])
    return {
        "contrast": [found.estimate, found.low, found.high],
        "true_contrast": gap,
        "seeds": seeds,
    }


def best_rates(
    rng: np.random.Generator,
    resamples: int,
    *,
    seeds: int,
    unbalanced: bool = False,
    steep: bool = False,
) -> RESULT:
    """H5: the metric in log rate, a curve whose top moves with the rank: a parabola on a grid of
    three rates a decade, or, `steep`, a slow rise and a sudden fall on a grid of two."""
    exponent, times = (
        float(rng.uniform(-0.4, 0.2)),
        float(np.exp(rng.uniform(np.log(4), np.log(16)))),
    )
    full_top = np.log(1e-4)
    grid = np.geomspace(1e-5, 10**-1.5, 8) if steep else np.geomspace(1e-5, 1e-2, 10)
    metric = _steep(rng) if steep else _parabola
    ranks = (4, 16, 64)
    middle = float(np.mean(np.log(ranks)))
    rows = []
    for rank in (*ranks, None):
        for seed in range(seeds):
            if unbalanced and rank == 16 and seed:
                continue
            top = (
                full_top
                if rank is None
                else full_top + np.log(times) + exponent * (np.log(rank) - middle)
            )
            top += rng.normal(0, 0.1)
            for rate in grid:
                best = metric(np.log(rate) - top) + rng.normal(0, 0.004)
                rows.append((rank, rate, seed, best))
    table = pd.DataFrame(rows, columns=["rank", "learning_rate", "seed", "best"])
    lora = table["rank"].notna()
    table = table.assign(
        trial=[f"t{i}" for i in range(len(table))], model="m", task="t", metric="accuracy",
        constant=0.5,
        method=np.where(lora, "lora", "full"), scaling=np.where(lora, "alpha/r", None),
        rank=table["rank"].astype("Int64"),
        status="done", best_step=1, last=table["best"], steps=1, diverged_at=pd.NA, seconds=1.0,
    )  # fmt: skip
    found = rates(Frames(table, pd.DataFrame(), pd.DataFrame(), pd.DataFrame())).groups.iloc[0]
    return {
        "exponent": [found["exponent"], found["exponent_low"], found["exponent_high"]],
        "true_exponent": exponent,
        "to_full": [found["to_full"], found["to_full_low"], found["to_full_high"]],
        "true_to_full": times,
        "seeds": seeds,
    }


def _parabola(x: float) -> float:
    """0.8 at 0, and never below a constant answer's 0.5."""
    return float(max(0.5, 0.8 - 0.04 * x**2))


def _steep(rng: np.random.Generator) -> Callable[[float], float]:
    """A product of two logistic curves, slow up and steep down, with its top at 0."""
    rise, fall, width = rng.uniform(0.6, 1.5), rng.uniform(0.08, 0.5), rng.uniform(1.0, 3.5)

    def at(x: Any) -> Any:
        return 0.5 + 0.35 * expit((x + width) / rise) * expit((width - x) / fall)

    places = np.linspace(-8, 8, 4001)
    top = float(places[at(places).argmax()])
    return lambda x: float(at(x + top))


def exponents(
    rng: np.random.Generator, resamples: int, *, seeds: int = 3, uneven: bool = False
) -> RESULT:
    """H1: with `uneven`, seed 0 has all ranks and the others only two of them."""
    known = Truth(b=float(rng.uniform(0, 1)), threshold=None)
    tables = study(
        known, seed=int(rng.integers(2**31)), seeds=seeds, full=False, rates=(1e-3,),
        ranks=(1, 8, 64, 384), size=384,
    )  # fmt: skip
    trials = tables["trials"]
    if uneven:
        trials = trials[trials["seed"].eq(0) | trials["rank"].isin([8, 384])]
    found = growth(Frames(**(tables | {"trials": trials})), rng=rng, resamples=resamples)
    lowest = 8  # of the ranks above 1
    return {
        "b": [found.exponent.estimate, found.exponent.low, found.exponent.high],
        "true_b": known.b,
        "ratio": [found.ratio.estimate, found.ratio.low, found.ratio.high],
        "true_ratio": (384 / lowest) ** known.b,
        "seeds": seeds,
    }


def inside(
    rng: np.random.Generator,
    resamples: int,
    *,
    trials: int,
    varying: float = 0.0,
    continued: int = 0,
    paired: bool = True,
) -> RESULT:
    """H3: trials that drift by 0.4 to 3 e-folds in eight evaluations, most of them not far; noise
    that lasts, and slopes that differ between trials by `varying` (a standard deviation). The first
    `continued` trials are there once more as their longer twins: the same eight evaluations
    and eight further ones. Without `paired` a twin counts as a cluster of its own."""
    rows = []
    for trial in range(trials):
        far = np.exp(rng.uniform(np.log(0.4), np.log(3.0)))
        count = 16 if trial < continued else 8
        u = far * (np.arange(1, count + 1) / 8) ** rng.uniform(0.5, 1.2)
        noise = rng.normal(0, 0.02, count)
        for step in range(1, count):
            noise[step] += 0.3 * noise[step - 1]
        before, after = 0.2 + 2 * varying * rng.normal(), -0.07 + varying * rng.normal()
        y = rng.normal() + before * np.minimum(u, KNOT) + after * np.maximum(0, u - KNOT) + noise
        columns = {"trial": trial, "step": range(count), "log_drift": -u, "metric_value": y}
        whole = pd.DataFrame(columns | {"eval_loss": -y, "run": trial})
        rows.append(whole.head(8))
        if trial < continued:
            twin = trials + trial
            rows.append(whole.assign(trial=twin, run=trial if paired else twin))
    found = slopes(pd.concat(rows, ignore_index=True))
    return {
        "slope": [found[f"metric_after{end}"] for end in ("", "_low", "_high")],
        "true_slope": -0.07,
    }
