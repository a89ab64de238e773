"""H4: whether LoRA lies further from full fine-tuning than full fine-tuning lies from itself.

Only pairs of different seeds are set against each other: two updates of one seed share their head's
start and the order of their batches, which alone brings them nearer.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rankscope.analysis.drift import LABELS, at_best
from rankscope.analysis.frames import HALFWAY, Frames
from rankscope.analysis.inference import Interval, cluster_of, jackknife, mean_intervals

GROUP = ["model", "task", "scaling", "rank"]
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
PAIRS = {"lora full": "lora_full", "full full": "full_full", "lora lora": "lora_lora"}


@dataclass(frozen=True)
class Alignment:
    """Pairs of updates at the chosen rates, of configurations that learnt.

    ``pairs``: `comparison` with the labels of both trials, ``kind`` ("lora full", "full full",
    "lora lora"), ``same_seed`` and ``captured_above_chance``. ``by_rank``: mean and interval of
    every measure of LoRA beside full fine-tuning per group (model, task, scaling, rank) and
    ``same_seed``. ``contrasts``: one row per group, with the mean cosines over layers and pairs of
    different seeds ``lora_full``, ``full_full``, ``lora_lora``; ``same_seed`` (LoRA and full, for
    comparison only); ``contrast`` = lora_full - full_full with its interval over ``seeds``;
    for the loss barrier at the midpoint ``barrier`` and for ``cka`` the same, each with its
    interval, where the store has them (``barrier_lora_full`` ..., ``cka_contrast``); the median
    stable ranks ``stable_lora``, ``stable_full``; and ``dimension``, the smallest side of the
    layers.
    """

    pairs: pd.DataFrame
    by_rank: pd.DataFrame
    contrasts: pd.DataFrame


def alignment(frames: Frames, *, rng: np.random.Generator, resamples: int = 1000) -> Alignment:
    """Summarise the store's pairs of updates."""
    pairs = _pairs(frames)
    beside = pairs[pairs["kind"].eq("lora full")]
    stable = at_best(frames.learnt_trials, frames.spectra, "dW")
    places = dict(iter(pairs.groupby(["model", "task"])))
    rows = [
        _contrast(dict(zip(GROUP, key, strict=True)), places[key[:2]], stable)
        for key, _ in beside.groupby(GROUP)
    ]
    return Alignment(pairs, _by_rank(beside, rng=rng, resamples=resamples), pd.DataFrame(rows))


def _pairs(frames: Frames) -> pd.DataFrame:
    trials, spectra = frames.learnt_trials, frames.spectra
    shapes = spectra[["trial", "layer", "m", "n"]].drop_duplicates(["trial", "layer"])
    others = trials[["trial", "method", "seed"]].add_suffix("_reference")
    pairs = trials[LABELS].merge(frames.comparison, on="trial")
    pairs = pairs.merge(others, left_on="reference", right_on="trial_reference")
    pairs = pairs.merge(shapes, on=["trial", "layer"], how="left")
    chance = (pairs["k"].astype(float) ** 2 / (pairs["m"] * pairs["n"]).astype(float)).clip(
        upper=1.0
    )
    # Subspaces that fill the whole space capture everything and say nothing: NaN there, not zero.
    room = (1 - chance).where(chance < 1)
    return pairs.assign(
        rank=pairs["rank"].astype(float),
        kind=pairs["method"] + " " + pairs["method_reference"],
        same_seed=pairs["seed"].eq(pairs["seed_reference"]),
        chance=chance,
        captured_above_chance=(pairs["captured_energy"] - chance) / room,
    )


def _by_rank(pairs: pd.DataFrame, *, rng: np.random.Generator, resamples: int) -> pd.DataFrame:
    keys = [*GROUP, "same_seed"]
    rows = []
    for key, part in pairs.groupby(keys, dropna=False):
        cluster, labels = cluster_of(part, "layer")
        means = mean_intervals(part[list(MEASURES)], labels, cluster, rng=rng, resamples=resamples)
        for measure in MEASURES:
            found = means[measure]
            described = {
                "measure": measure,
                "mean": found.estimate,
                "low": found.low,
                "high": found.high,
            }
            rows.append(dict(zip(keys, key, strict=True)) | described | {"cluster": cluster})
    return pd.DataFrame(rows, columns=[*keys, "measure", "mean", "low", "high", "cluster"])


def _contrast(
    group: dict[str, Any], pairs: pd.DataFrame, stable: pd.DataFrame
) -> dict[str, object]:
    """One row of `Alignment.contrasts`, from the pairs of its model and task."""
    lora = pairs["scaling"].eq(group["scaling"]) & pairs["rank"].eq(group["rank"])
    kinds = {name: pairs[pairs["kind"].eq(kind)] for kind, name in PAIRS.items()}
    kinds = {
        name: rows if name == "full_full" else rows[lora[rows.index]]
        for name, rows in kinds.items()
    }
    same = kinds["lora_full"][kinds["lora_full"]["same_seed"]]
    crossed = {name: rows[~rows["same_seed"]] for name, rows in kinds.items()}
    found = contrast(crossed["lora_full"], crossed["full_full"])
    row = group | {name: float(rows["cosine"].mean()) for name, rows in crossed.items()}
    row |= {"same_seed": float(same["cosine"].mean()), "same_seeds": same["seed"].nunique()}
    row |= {
        "contrast": found.estimate,
        "low": found.low,
        "high": found.high,
        "seeds": found.clusters,
    }
    for name in HALFWAY:
        row |= _halfway(name, crossed, same)
    here = stable[stable["model"].eq(group["model"]) & stable["task"].eq(group["task"])]
    own = here["scaling"].eq(group["scaling"]) & here["rank"].astype(float).eq(group["rank"])
    row["stable_lora"] = float(here.loc[own, "stable_rank"].astype(float).median())
    row["stable_full"] = float(
        here.loc[here["method"].eq("full"), "stable_rank"].astype(float).median()
    )
    row["norm_ratio"] = float(same["norm_ratio"].mean())
    return row | {"dimension": float(kinds["lora_full"][["m", "n"]].to_numpy(dtype=float).min())}


def _halfway(name: str, crossed: dict[str, pd.DataFrame], same: pd.DataFrame) -> dict[str, object]:
    """Means over pairs, which are of no layer, with their intervals over seeds."""
    sides = {kind: rows.dropna(subset=[name]) for kind, rows in crossed.items()}
    found = {kind: contrast(rows, None, name) for kind, rows in sides.items()}
    found["contrast"] = contrast(sides["lora_full"], sides["full_full"], name)
    row: dict[str, object] = {f"{name}_same_seed": float(same[name].mean())}
    for kind, one in found.items():
        row |= {f"{name}_{kind}": one.estimate}
        row |= {f"{name}_{kind}_low": one.low, f"{name}_{kind}_high": one.high}
    return row


def contrast(
    lora_full: pd.DataFrame, full_full: pd.DataFrame | None, name: str = "cosine"
) -> Interval:
    """Mean of cos(LoRA_s, FT_s') - mean of cos(FT_s, FT_s') over all s != s', seeds left out one at
    a time; of another ``name`` than the cosine likewise, and of the first alone without the second.

    Rows are pairs of trials and layers (``seed``, ``seed_reference``, ``name``). With two seeds
    there is an estimate and no interval: leaving one out leaves no pair.
    """
    sides = [
        rows.groupby(["seed", "seed_reference"])[name].mean().dropna()
        for rows in (lora_full, full_full)
        if rows is not None
    ]
    pairs = [np.array(side.index.to_list()).reshape(-1, 2) for side in sides]
    values = [side.to_numpy(dtype=float) for side in sides]
    seeds = sorted(set.intersection(*(set(pair.ravel().tolist()) for pair in pairs)))

    def difference(kept: list[Hashable]) -> float:
        own = [
            y[np.isin(pair, np.array(kept)).all(axis=1)]
            for pair, y in zip(pairs, values, strict=True)
        ]
        first, *others = [y.mean() if len(y) else np.nan for y in own]
        return float(first - sum(others))

    return jackknife(seeds, difference)
