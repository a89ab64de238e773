"""Simulated studies with known truth, in the shape of the four frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from rankscope.analysis.selection import chosen

LAYERS = tuple(
    f"encoder.layer.{i}.attention.self.{kind}" for i in range(2) for kind in ("query", "value")
)


@dataclass(frozen=True)
class Truth:
    """What a simulated study is made of. ``direction`` -1: sr(W + dW) falls; ``threshold`` None: no
    decline.

    ``threshold`` and ``reach`` are log drifts; ``reach`` is the drift of the largest rate at
    the end. ``varying`` is the standard deviation of the logarithm of a trial's own threshold.
    ``outliers`` is the share of evaluations at the two largest rates that stand at a constant
    answer or far below. ``rows``: the metric is an accuracy on so many rows, 0 for a real
    number. ``recorded``: the trials say what the metric of a constant answer is. ``noise`` is
    the standard deviation of an evaluation, ``trial_noise`` that of what all evaluations of
    one trial share (None: as large). ``b_seeds`` and ``b_layers`` are how much b differs
    between seeds and between layers.
    """

    b: float = 0.25
    c: float = 1.0
    threshold: float | None = 0.8
    direction: int = -1
    decline: float = 0.25
    reach: float = 2.5
    plateau: float = 0.80
    floor: float = 0.50
    noise: float = 0.015
    trial_noise: float | None = None
    b_seeds: float = 0.02
    b_layers: float = 0.0
    warmup: float = 0.0  # how far below the plateau an untrained model starts
    learnt: float = 0.01  # the size ||dW|| / ||W|| at which half of that is made up
    speed: float = 4.0  # how suddenly
    cosine: float = 0.3
    full_cosine: float = 0.3
    same_seed: float = 0.1
    varying: float = 0.0
    outliers: float = 0.0
    rows: int = 0
    recorded: bool = True

    def mean(self, u: np.ndarray) -> np.ndarray:
        """The metric at drifts `u` (N,) of models that have learnt, on average over trials."""
        if self.threshold is None:
            return np.full(len(u), self.plateau)
        own = self.threshold * np.exp(self.varying * norm.ppf((np.arange(199) + 0.5) / 199))
        lost = self.decline * np.maximum(0, np.asarray(u)[:, None] - own)
        return np.maximum(self.floor, self.plateau - lost).mean(1)

    @property
    def half(self) -> float:
        """The drift at which half of the gain is lost on average over trials; infinite
        where it is not in reach."""
        u = np.linspace(0, self.reach, 4001)
        lost = self.mean(u) <= (self.plateau + self.floor) / 2
        return float(u[lost.argmax()]) if lost.any() else np.inf


def study(
    truth: Truth = Truth(),
    *,
    seed: int = 0,
    ranks: tuple[int, ...] = (1, 4, 16, 64),
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    seeds: int = 3,
    models: tuple[str, ...] = ("small",),
    tasks: tuple[str, ...] = ("paraphrase",),
    scalings: tuple[str, ...] = ("alpha/r",),
    layers: tuple[str, ...] = LAYERS,
    evaluations: int = 5,
    steps: int = 200,
    full: bool = True,
    size: int = 64,
) -> dict[str, pd.DataFrame]:
    """``{"trials": ..., "metrics": ..., "spectra": ..., "comparison":
    ...}`` of one simulated study."""
    rng = np.random.default_rng(seed)
    trials = _trials(truth, rng, ranks, rates, seeds, models, tasks, scalings, steps, full)
    curves = _curves(truth, rng, trials, max(rates), evaluations, steps)
    best = (
        curves.sort_values("metric_value").drop_duplicates("trial", keep="last").set_index("trial")
    )
    last = curves.sort_values("step").drop_duplicates("trial", keep="last").set_index("trial")
    trials = trials.assign(
        best=trials["trial"].map(best["metric_value"]),
        best_step=trials["trial"].map(best["step"]).astype(int),
        last=trials["trial"].map(last["metric_value"]),
    )
    return {
        "trials": trials,
        "metrics": curves.drop(columns=["drift", "norm", "rho"]),
        "spectra": _spectra(truth, rng, trials, curves, layers, size),
        "comparison": _comparison(truth, rng, trials, layers, size),
    }


def _trials(truth, rng, ranks, rates, seeds, models, tasks, scalings, steps, full):
    rows = []
    for model in models:
        for task in tasks:
            kinds = [("lora", r, scaling) for scaling in scalings for r in ranks]
            kinds += [("full", pd.NA, pd.NA)] if full else []
            for method, rank, scaling in kinds:
                for rate in rates:
                    for s in range(seeds):
                        rows.append((model, task, method, rank, scaling, rate, s))
    columns = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
    table = pd.DataFrame(rows, columns=columns).astype({"rank": "Int64"})
    return table.assign(
        trial=[f"t{i:05d}" for i in range(len(table))],
        status="done",
        metric="accuracy",
        steps=steps,
        diverged_at=pd.array([pd.NA] * len(table), dtype="Int64"),
        seconds=rng.uniform(3, 9, len(table)),
        constant=truth.floor if truth.recorded else np.nan,
    )


def _curves(truth, rng, trials, fastest, evaluations, steps):
    at = np.linspace(steps / evaluations, steps, evaluations).astype(int)
    rate = trials["learning_rate"].to_numpy()[:, None] / fastest
    own = rng.normal(0, 0.15, (len(trials), 1))
    # rho = sigma_1(dW) / sigma_1(W) grows with the way travelled; the stable
    # rank moves once rho exceeds 1.
    # (trials, evaluations)
    rho = np.exp(truth.reach / 2) * (rate * at / steps * np.exp(own)) ** 0.7
    size = 2 * np.log(np.maximum(1, rho))
    # The norm of an update grows in proportion to the way, and trials scatter
    # about it in their own manner.
    way = rate * (at / steps) * np.exp(rng.normal(0, 0.2, (len(trials), 1)))
    behind = truth.warmup / (1 + (way / truth.learnt / np.exp(own)) ** truth.speed)
    shared = truth.noise if truth.trial_noise is None else truth.trial_noise
    wobble = shared * rng.normal(size=(len(trials), 1)) + truth.noise * rng.normal(size=size.shape)
    threshold = np.exp(truth.varying * rng.normal(size=(len(trials), 1))) * (truth.threshold or 0.0)
    lost = 0.0 if truth.threshold is None else truth.decline * np.maximum(0, size - threshold)
    value = np.maximum(truth.floor, truth.plateau - lost - behind)
    expected = np.maximum(truth.floor, truth.mean(size.ravel()) - behind.ravel())
    value = _bounded(truth, rng, value, wobble, rate) if truth.rows else value + wobble
    flat = {name: np.repeat(trials[name].to_numpy(), evaluations) for name in ("trial",)}
    return pd.DataFrame(
        {
            **flat,
            "step": np.tile(at, len(trials)),
            "epoch": np.tile(at / at[0], len(trials)).astype(float),
            "train_loss": 1 - value.ravel(),
            "eval_loss": 1.1 - value.ravel(),
            "metric_value": value.ravel(),
            "expected": expected,  # without noise, with the mean threshold
            "drift": truth.direction * size.ravel(),
            "norm": way.ravel(),
            "rho": rho.ravel(),
        }
    )


def _bounded(truth, rng, value, wobble, rate):
    """An accuracy on `truth.rows` rows: quieter near the floor, where most models give a constant
    answer exactly."""
    kept = np.clip((value - truth.floor) / (truth.plateau - truth.floor), 0, 1)
    value = value + np.sqrt(kept) * wobble
    hit = (rng.random(value.shape) < truth.outliers) & (rate > 0.2)
    value = np.where(hit, rng.choice([truth.floor, truth.floor, 0.46, 0.32], value.shape), value)
    exact = (value < truth.floor + 0.02) & (rng.random(value.shape) < 0.9) & ~hit
    value = np.where(exact, truth.floor, np.clip(value, 0, 1))
    return np.round(value * truth.rows) / truth.rows


def _spectra(truth, rng, trials, curves, layers, size):
    base = pd.DataFrame({"layer": layers, "base": 40 * np.exp(rng.normal(0, 0.1, len(layers)))})
    seeds = np.sort(trials["seed"].unique())
    slope = pd.Series(rng.normal(0, truth.b_seeds, len(seeds)), index=seeds)
    bend = rng.normal(0, 1, len(layers)) * truth.b_layers
    bend = pd.Series(bend - bend.mean(), index=list(layers))  # b is the mean over these layers
    labels = trials[["trial", "rank", "seed", "method"]]
    start = (
        labels[["trial"]]
        .merge(base, how="cross")
        .assign(step=0, matrix="W", stable_rank=lambda f: f["base"])
    )
    rows = (
        curves[["trial", "step", "drift", "norm", "rho"]]
        .merge(base, how="cross")
        .merge(labels, on="trial")
    )
    rank = rows["rank"].fillna(size).to_numpy(dtype=float)
    b = truth.b + rows["seed"].map(slope).to_numpy() + rows["layer"].map(bend).to_numpy()
    update = truth.c * rank**b * np.exp(rng.normal(0, 0.05, len(rows)))
    moved = rows.assign(
        matrix="W+dW",
        stable_rank=rows["base"] * np.exp(rows["drift"] + rng.normal(0, 0.02, len(rows))),
    )
    table = pd.concat(
        [start, rows.assign(matrix="dW", stable_rank=update), moved], ignore_index=True
    )
    # W has norm sqrt(sr(W)) in every layer, that is a spectral norm of 1.
    frobenius = np.sqrt(table["stable_rank"])
    update = table["matrix"].eq("dW")
    frobenius[update] = (table["norm"] * np.sqrt(table["base"]))[update]
    spectral = frobenius / np.sqrt(table["stable_rank"])
    return table.assign(
        m=size,
        n=size,
        lower=table["stable_rank"] * 0.999,
        upper=table["stable_rank"] * 1.001,
        spectral_norm=spectral.where(~update, table["rho"]),
        frobenius_norm=frobenius,
        effective_rank=np.where(table["matrix"].eq("dW"), table["stable_rank"] * 1.5, np.nan),
    ).drop(columns=["base", "drift", "norm", "rho", "rank", "seed", "method"])


def _comparison(truth, rng, trials, layers, size):
    """Every LoRA trial at its best rate beside the full fine-tunes of all seeds, and these beside
    each other."""
    keys = ["model", "task"]
    best = chosen(trials)
    full, lora = (best[best["method"].eq(method)] for method in ("full", "lora"))
    beside = full[["trial", "seed", *keys]].rename(columns={"trial": "reference", "seed": "other"})
    pairs = lora[["trial", "rank", "seed", *keys]].merge(beside, on=keys)
    twice = full[["trial", "rank", "seed", *keys]].merge(beside, on=keys)
    pairs = pd.concat([pairs, twice[twice["seed"].lt(twice["other"])]], ignore_index=True)
    table = pairs.merge(pd.DataFrame({"layer": layers}), how="cross")
    k = np.minimum(table["rank"].fillna(size).to_numpy(dtype=int), size)
    mean = np.where(table["rank"].isna(), truth.full_cosine, truth.cosine * (1 - 0.5 / k))
    near = np.where(table["seed"].eq(table["other"]), truth.same_seed, 0.0)
    own = pd.Series(rng.normal(0, 0.02, len(trials)), index=trials["trial"])
    seeds = own[table["trial"]].to_numpy() + own[table["reference"]].to_numpy()
    cosine = np.clip(mean + near + seeds + rng.normal(0, 0.02, len(table)), -1, 1)
    return table[["trial", "reference", "layer"]].assign(
        captured_energy=np.clip((k / size) ** 2 + cosine**2 * (1 - (k / size) ** 2), 0, 1),
        k=k,
        cosine=cosine,
        left_overlap=np.clip(k / size + 0.1, 0, 1),
        right_overlap=np.clip(k / size + 0.08, 0, 1),
        relative_distance=np.sqrt(1 - cosine**2),
        norm_ratio=0.4 + 0.1 * rng.random(len(table)),
        weight_distance=0.1 * np.sqrt(1 - cosine**2),
        left_angle_first=60.0,
        left_angle_last=89.0,
        right_angle_first=55.0,
        right_angle_last=88.0,
        intruders_lora=rng.integers(0, 3, len(table)),
        intruders_full=0,
    )
