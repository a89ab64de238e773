"""H4: how near the LoRA update is to the update that full fine-tuning learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rankscope.analysis.bootstrap import Interval, cluster_of, mean_interval, mean_intervals
from rankscope.analysis.drift import LABELS, at_best
from rankscope.analysis.selection import chosen

MEASURES = {
    "cosine": "cosine of the two updates",
    "captured_above_chance": "captured energy above chance",
    "relative_distance": "relative distance",
    "norm_ratio": "ratio of norms",
    "left_overlap": "overlap of left subspaces",
    "right_overlap": "overlap of right subspaces",
    "captured_energy": "captured energy",
    "weight_distance": "distance of W + ΔW to W_FT",
    "left_angle_first": "smallest left angle, °",
    "left_angle_last": "largest left angle, °",
    "right_angle_first": "smallest right angle, °",
    "right_angle_last": "largest right angle, °",
    "intruders_lora": "intruders, LoRA",
    "intruders_full": "intruders, full",
}


@dataclass(frozen=True)
class Alignment:
    """LoRA beside full fine-tuning.

    ``points``: `comparison` with labels, ``chance`` (k^2 / mn: the energy that random k-dimensional subspaces
    capture) and ``captured_above_chance``. ``by_rank``: mean and interval of every measure per model, task,
    scaling and rank. ``highest``: that rank; ``whole``: it is every layer's dimension; ``high``: at least
    half of it. ``cosine``, ``distance``, ``captured``: over everything at the highest rank of each model.
    ``stable_ratio``: mean of log(sr(dW_LoRA) / sr(dW_FT)) there; ``stable_lora`` and ``stable_full`` are the
    medians. ``means``: plain means of every measure there. ``rules``: the cosine under alpha/sqrt(r) minus that under
    alpha/r, same rank, seed and layer. ``yardstick``: the cosine of two full fine-tunings that differ in their seed.
    """

    points: pd.DataFrame
    by_rank: pd.DataFrame
    highest: float
    whole: bool
    high: bool
    cosine: Interval
    distance: Interval
    captured: Interval
    stable_lora: float
    stable_full: float
    stable_ratio: Interval
    rules: Interval
    means: dict[str, float]
    yardstick: Interval


def alignment(
    trials: pd.DataFrame,
    spectra: pd.DataFrame,
    comparison: pd.DataFrame,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Alignment:
    """Summarise `comparison` against rank; give all `trials`.

    Stable ranks are those at the chosen learning rates.
    """
    pairs = _points(trials, spectra, comparison)
    points, repeated = pairs[pairs["method"].eq("lora")], pairs[pairs["method"].eq("full")]
    top = points[points["rank"].eq(points.groupby("model")["rank"].transform("max"))]
    options: dict[str, Any] = {"rng": rng, "resamples": resamples}
    dimension = top[["m", "n"]].min(axis=1)
    cosine, distance, captured = (
        _mean(top, measure, **options) for measure in ("cosine", "relative_distance", "captured_above_chance")
    )
    stable = _stable_ranks(chosen(trials), spectra)
    return Alignment(
        points=points,
        by_rank=_by_rank(points, **options),
        highest=float(points["rank"].max()) if len(points) else np.nan,
        whole=bool(len(top) and (top["rank"] >= dimension).all()),
        high=bool(len(top) and (2 * top["rank"] >= dimension).all()),
        cosine=cosine.within(-1, 1),
        distance=distance.within(0, np.inf),
        captured=captured.within(-1, 1),
        stable_lora=float(stable["lora"].median()),
        stable_full=float(stable["full"].median()),
        stable_ratio=_mean(stable, "ratio", **options),
        rules=_mean(_rules(points), "difference", **options),
        means={measure: float(top[measure].astype(float).mean()) for measure in MEASURES},
        yardstick=_mean(repeated, "cosine", **options).within(-1, 1),
    )


def _points(trials: pd.DataFrame, spectra: pd.DataFrame, comparison: pd.DataFrame) -> pd.DataFrame:
    shapes = spectra[["trial", "layer", "m", "n"]].drop_duplicates(["trial", "layer"])
    points = trials[LABELS].merge(comparison, on="trial").merge(shapes, on=["trial", "layer"], how="left")
    points = points.assign(rank=points["rank"].astype(float))
    points["chance"] = np.minimum(
        1.0, points["k"].astype(float) ** 2 / (points["m"] * points["n"]).astype(float)
    )
    # Subspaces that fill the whole space capture everything and say nothing: NaN there, not zero.
    room = (1 - points["chance"]).where(points["chance"] < 1)
    points["captured_above_chance"] = (points["captured_energy"] - points["chance"]) / room
    return points


def _by_rank(points: pd.DataFrame, *, rng: np.random.Generator, resamples: int) -> pd.DataFrame:
    keys = ["model", "task", "scaling", "rank"]
    rows = []
    for key, part in points.groupby(keys, dropna=False):
        cluster, labels = cluster_of(part, "layer")
        means = mean_intervals(part[list(MEASURES)], labels, cluster, rng=rng, resamples=resamples)
        for measure in MEASURES:
            found = means[measure]
            described = {"measure": measure, "mean": found.estimate, "low": found.low, "high": found.high}
            rows.append(dict(zip(keys, key, strict=True)) | described | {"chance": part["chance"].mean()})
    return pd.DataFrame(rows, columns=[*keys, "measure", "mean", "low", "high", "chance"])


def _mean(rows: pd.DataFrame, measure: str, *, rng: np.random.Generator, resamples: int) -> Interval:
    cluster, labels = cluster_of(rows, "layer")
    return mean_interval(rows[measure].astype(float), labels, cluster, rng=rng, resamples=resamples)


def _stable_ranks(trials: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """sr(dW) of LoRA at each model's highest rank beside full fine-tuning, paired by task, seed and layer."""
    rows = at_best(trials, spectra, "dW")
    keys = ["model", "task", "seed", "layer"]
    full = rows[rows["method"].eq("full")].drop_duplicates(keys)
    lora = rows[rows["method"].eq("lora")]
    lora = lora[lora["rank"].eq(lora.groupby("model")["rank"].transform("max"))]
    pairs = lora[[*keys, "stable_rank"]].merge(
        full[[*keys, "stable_rank"]], on=keys, suffixes=("_lora", "_full")
    )
    pairs = pairs.rename(columns={"stable_rank_lora": "lora", "stable_rank_full": "full"})
    return pairs.assign(ratio=np.log(pairs["lora"].astype(float) / pairs["full"].astype(float)))


def _rules(points: pd.DataFrame) -> pd.DataFrame:
    """The cosine under each scaling rule, paired, with their difference."""
    keys = ["model", "task", "rank", "seed", "layer", "cosine"]
    plain, root = (points.loc[points["scaling"].eq(rule), keys] for rule in ("alpha/r", "alpha/sqrt(r)"))
    pairs = plain.merge(root, on=keys[:-1], suffixes=("_plain", "_root"))
    return pairs.assign(difference=pairs["cosine_root"].astype(float) - pairs["cosine_plain"].astype(float))
