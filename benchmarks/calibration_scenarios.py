"""The studies of `calibration.py`: each scenario draws one study with known truth and says
what the estimators find. Those of H2 are here, others in `calibration_effects.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from calibration_effects import RESULT, best_rates, exponents, inside, pairs
from scipy.stats import norm

from rankscope.analysis.drift import checkpoints
from rankscope.analysis.frames import Frames
from rankscope.analysis.threshold import thresholds
from rankscope.analysis.threshold.evidence import evidence
from simulate import Truth, study

DATA = Path(__file__).resolve().parents[1] / "docs" / "results" / "minilm-glue" / "data"
# Of the real study: constant answer, gain, noise of an evaluation; the drifts at which
# the decline begins and ends.
REAL = {"SST-2": (0.535, 0.30, 0.012), "MRPC": (0.684, 0.08, 0.010)}
SHAPES: dict[str, tuple[float, float] | None] = {
    "sharp": (1.6, 2.0), "gradual": (0.8, 2.4), "linear": (0.0, 3.0), "varying": (1.5, 2.0),
    "flat": None,
}  # fmt: skip
OUTLIERS = (None, None, 0.46, 0.32)  # where outliers stand; None: at a constant answer
HIT = 0.12  # share of outliers at the largest rates of the real trajectories
ALIKE = 40  # checkpoints
LEARNT = 0.03  # the size ||dW|| / ||W|| at which half of the gain is made


def simulated(
    rng: np.random.Generator, resamples: int, *, truth: RESULT | None = None, **shape: Any
) -> RESULT:
    """H2 of a study of tests/simulate.py with a random threshold, decline and noise."""
    noise = float(np.exp(rng.uniform(np.log(0.005), np.log(0.03))))
    drawn = {
        "direction": int(rng.choice([-1, 1])),
        "noise": noise,
        "trial_noise": noise * float(rng.choice([0.0, 1.0])),
        "warmup": float(rng.choice([0.0, 0.2])),
        "learnt": float(np.exp(rng.uniform(np.log(0.002), np.log(0.01)))),
        "threshold": float(rng.uniform(0.5, 1.4)),
        "decline": float(rng.uniform(0.3, 0.6)),
    } | (truth or {})
    known = Truth(**drawn)
    size: RESULT = {
        "seeds": int(rng.choice([2, 3])),
        "evaluations": int(rng.choice([6, 8])),
        "full": False,
    } | shape
    tables = study(known, seed=int(rng.integers(2**31)), **size)
    frames = Frames(**tables)
    found = thresholds(frames, rng=rng, resamples=resamples)[0]
    quiet = tables["metrics"].assign(metric_value=tables["metrics"]["expected"])
    quiet = checkpoints(frames.trials, quiet, frames.drifts)

    def mean(u: Any) -> Any:  # whatever drifts is of one of the two largest rates
        return mixed(known.mean(u), known.outliers, known.floor, found.noise)

    hit = known.outliers * (quiet["learning_rate"] > 0.2 * quiet["learning_rate"].max())
    expected = mixed(quiet["metric_value"], hit, known.floor, found.noise)
    quiet = quiet.assign(metric_value=expected)
    return _threshold(found, *population(quiet, known.floor, mean)) | {
        "noise": known.noise,
        "seeds": size["seeds"],
    }


def mixed(value: Any, hit: Any, constant: float, noise: float) -> Any:
    """The metric on average where evaluations stand at OUTLIERS with probability `hit`. An unstable
    trial is data: P0, the dose and the loss are those of the mixture, with values held where the
    estimator holds them."""
    places = np.array([constant if place is None else place for place in OUTLIERS])
    return (1 - hit) * value + hit * float(np.maximum(places, constant - 3 * noise).mean())


def population(
    quiet: pd.DataFrame, constant: float, mean: Callable[[Any], Any]
) -> tuple[float, float]:
    """The half dose and the loss by their definitions, without noise: `quiet` are checkpoints with
    the metric that each has on average, `mean` is that of a model that has learnt, by its drift."""
    data = evidence(quiet, constant, 0.0)
    near = float(data.near.y[data.near.chosen].mean())
    grid = np.linspace(0, data.reach, 2000)
    lost = mean(grid) <= (near + constant) / 2
    deep = data.far_u[data.far_u >= data.deep]
    return float(grid[lost.argmax()]) if lost.any() else np.inf, near - float(mean(deep).mean())


def _threshold(found: Any, half: float, loss: float) -> RESULT:
    return {
        "half": [found.half.estimate, found.half.low, found.half.high],
        "true_half": half,
        "loss": [found.loss.estimate, found.loss.low, found.loss.high],
        "true_loss": loss,
        "answer": found.answer,
        "reason": found.reason,
        "plateau": [found.plateau.estimate, found.plateau.low, found.plateau.high],
        "tolerated": [found.tolerated.estimate, found.tolerated.low, found.tolerated.high],
    }


@cache
def _kept() -> dict[str, pd.DataFrame]:
    return {
        name: pd.read_parquet(DATA / f"{name}.parquet")
        for name in ("trials", "metrics", "spectra", "drifts")
    }


def real(
    rng: np.random.Generator, resamples: int, *, task: str, shape: str, outliers: bool = False
) -> RESULT:
    """H2 at the trajectories of docs/results/minilm-glue: real drifts and
    sizes, a simulated metric."""
    constant, gain, noise = REAL[task]
    kept = _kept()
    trials = kept["trials"]
    trials = trials[
        trials["task"].eq(task) & trials["method"].eq("lora") & trials["budget"].fillna(1).eq(1)
    ]
    drifts = kept["drifts"].rename(columns={"drift": "log_drift"})
    points = (
        kept["metrics"]
        .merge(trials[["trial", "learning_rate"]], on="trial")
        .merge(drifts, on=["trial", "step"])
    )
    codes, names = pd.factorize(points["trial"])
    u = np.maximum(0.0, -points["log_drift"].to_numpy())
    ends = SHAPES[shape]
    own = np.exp(rng.normal(0, 0.25 if shape == "varying" else 0.0, len(names)))
    kept_share = np.ones(len(u)) if ends is None else 1 - _ramp(u, own[codes], ends)
    learnt = 1 / (1 + (LEARNT / np.maximum(points["size"].to_numpy(), 1e-9)) ** 3)
    share = kept_share * learnt
    wobble = rng.normal(0, noise, len(names))[codes] + rng.normal(0, noise, len(u))
    value = constant + gain * share + np.sqrt(np.clip(share, 0.1, 1)) * wobble * (share > 0.02)
    risk = points["learning_rate"].ge(3e-3).to_numpy() & outliers
    if outliers:
        hit = risk & (rng.random(len(u)) < HIT)
        value = np.where(hit, rng.choice([constant, constant, 0.46, 0.32], len(u)), value)
    metrics = points[["trial", "step", "epoch", "train_loss", "eval_loss"]].assign(
        metric_value=value
    )
    best = metrics.loc[metrics.groupby("trial")["metric_value"].idxmax()].set_index("trial")
    trials = trials.assign(best=trials["trial"].map(best["metric_value"]), constant=constant)
    spectra = kept["spectra"][kept["spectra"]["trial"].isin(trials["trial"])]
    frames = Frames(
        trials, metrics, spectra, pd.DataFrame(), drifts[drifts["trial"].isin(trials["trial"])]
    )
    found = thresholds(frames, rng=rng, resamples=resamples)[0]
    spread = np.exp(norm.ppf((np.arange(199) + 0.5) / 199) * (0.25 if shape == "varying" else 0))

    def mean(drift: Any) -> Any:
        if ends is None:
            return np.full(len(drift), constant + gain)
        return constant + gain * (1 - _ramp(drift, spread[:, None], ends).mean(axis=0))

    def observed(drift: Any) -> Any:  # as many outliers as at the checkpoints of like drift
        order = np.argsort(np.abs(u[:, None] - drift), axis=0)[:ALIKE]  # (ALIKE, N)
        return mixed(mean(drift), HIT * risk[order].mean(axis=0), constant, found.noise)

    expected = constant + (mean(u) - constant) * learnt
    quiet = points.assign(metric_value=mixed(expected, HIT * risk, constant, found.noise))
    quiet = checkpoints(trials, quiet[metrics.columns], frames.drifts)
    return _threshold(found, *population(quiet, constant, observed))


def _ramp(u: Any, own: Any, ends: tuple[float, float]) -> Any:
    return np.clip((u - ends[0] * own) / ((ends[1] - ends[0]) * own), 0, 1)


Scenario = Callable[[np.random.Generator, int], RESULT]
BOUNDED = {"rows": 512, "floor": 0.535, "warmup": 0.0, "recorded": False}
SCENARIOS: dict[str, Scenario] = {
    "threshold": simulated,
    "rising": partial(simulated, truth={"direction": 1}),
    "varying thresholds": partial(simulated, truth={"varying": 0.25}),
    "bounded": partial(simulated, truth=BOUNDED),
    "bounded, outliers": partial(simulated, truth=BOUNDED | {"outliers": 0.15}),
    "few trials": partial(simulated, seeds=1),
    "linear decline": partial(simulated, truth={"threshold": 0.0, "decline": 0.12}),
    "flat": partial(simulated, truth={"threshold": None}),
    "flat, outliers": partial(simulated, truth=BOUNDED | {"threshold": None, "outliers": 0.05,
                                                          "recorded": True}),
    **{
        f"fall of {fall:g}": partial(
            simulated,
            truth={"threshold": 0.9, "decline": fall / 1.6, "noise": 0.02, "trial_noise": 0.02,
                   "warmup": 0.0,
                   "floor": 0.8 - fall},
            seeds=3,
        )
        for fall in (0.08, 0.16, 0.32)
    },
    **{f"real {task}, {shape}": partial(real, task=task,
                                        shape=shape) for task in REAL for shape in SHAPES},
    "real SST-2, outliers": partial(real, task="SST-2", shape="sharp", outliers=True),
    "H1, 3 seeds": exponents,
    "H1, 5 seeds": partial(exponents, seeds=5),
    "H1, 3 seeds, uneven": partial(exponents, uneven=True),
    **{f"H3, {trials} trials": partial(inside, trials=trials) for trials in (6, 12, 25)},
    **{f"H3, {trials} trials, slopes that vary": partial(inside, trials=trials,
                                                      varying=0.04) for trials in (6, 12, 25)},
    "H3, 12 trials, 6 continued": partial(inside, trials=12, varying=0.04, continued=6),
    "H4, 3 seeds": partial(pairs, seeds=3),
    "H4, 5 seeds": partial(pairs, seeds=5),
    "H4, 5 seeds, uneven": partial(pairs, seeds=5, drop=1),
    "H5, 3 seeds": partial(best_rates, seeds=3),
    "H5, 5 seeds": partial(best_rates, seeds=5),
    "H5, 5 seeds, uneven": partial(best_rates, seeds=5, unbalanced=True),
    "H5, 3 seeds, steep": partial(best_rates, seeds=3, steep=True),
}  # fmt: skip
