"""Keeps trials of different settings apart, and compares them.

A setting is what a study lists beside model, task, method, rank and scaling rule: optimiser,
schedule, layers, initialisation, alpha, LoRA+, DoRA (text such as "optimizer=muon"). No estimate
pools models, so where there are several settings each counts as a model of its own, "minilm
(optimizer=muon)". Full fine-tunes have no factors: one stands beside every LoRA setting with its
optimiser, schedule and layers, in each as a copy.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rankscope.analysis.drift import at_best
from rankscope.analysis.inference import Interval, jackknife

if TYPE_CHECKING:
    from rankscope.analysis.frames import Frames

OF_LORA = ("init_lora_weights", "lora_alpha", "lora_plus_ratio", "use_dora", "rank_pattern")
GROUP = ["model", "task", "method", "scaling", "rank"]
COLUMNS = [
    *GROUP, "setting", "learning_rate", "edge", "value", "seeds", "stable_rank", "stable_rank_low",
    "stable_rank_high", "size", "rho", "against", "ratio", "ratio_low", "ratio_high", "difference",
    "difference_low", "difference_high",
]  # fmt: skip


def of_full(setting: str) -> str:
    """The part of a LoRA trial's setting that a full fine-tune has as well."""
    parts = [part for part in setting.split(", ") if part.split("=")[0] not in OF_LORA]
    return ", ".join(parts)


def labelled(trials: pd.DataFrame) -> pd.DataFrame:
    """``trials`` (columns ``trial``, ``model``, ``task``, ``method``, ``setting``) with one row per
    trial and setting that it belongs to.

    ``model`` becomes the model with its setting, ``base`` the model itself, ``source`` the trial,
    ``trial`` a name that no other row has. Where there is one setting only, names stay.
    """
    plain = trials.assign(base=trials["model"], source=trials["trial"])
    if "setting" not in trials or not has_several(trials):
        return plain
    lora = plain[plain["method"].eq("lora")]
    settings = lora[["model", "task", "setting"]].drop_duplicates()
    settings = settings.assign(full=settings["setting"].map(of_full)).rename(
        columns={"setting": "beside"}
    )
    rest = plain[plain["method"].ne("lora")]
    full = rest.merge(
        settings, left_on=["model", "task", "setting"], right_on=["model", "task", "full"],
        how="left",
    )  # fmt: skip
    again = full.duplicated("source")
    full["trial"] = full["trial"].where(~again, full["trial"] + " (" + full["beside"] + ")")
    full["setting"] = full["beside"].fillna(full["setting"])
    found = pd.concat([lora, full[plain.columns]], ignore_index=True)
    named = found["base"] + " (" + found["setting"] + ")"
    return found.assign(model=found["base"].where(found["setting"].eq(""), named))


def has_several(trials: pd.DataFrame) -> bool:
    """Whether these trials (columns ``method`` and ``setting``) are of unlike settings."""
    is_lora = trials["method"].eq("lora")
    lora = set(trials.loc[is_lora, "setting"])
    full = set(trials.loc[~is_lora, "setting"])
    return len(lora) > 1 or len(full | set(map(of_full, lora))) > 1


def by_setting(frames: Frames) -> Frames:
    """The frames in which each setting is a model of its own; the same ones where there is one."""
    trials = frames.all_trials
    if trials.empty or not has_several(trials):
        return frames
    found = labelled(trials)
    places = found[["source", "trial", "model"]]

    def placed(frame: pd.DataFrame, key: str = "trial") -> pd.DataFrame:
        names = places.rename(columns={"trial": "placed", "model": "group", "source": key})
        return frame.merge(names, on=key)

    def moved(frame: pd.DataFrame) -> pd.DataFrame:
        if frame.empty:
            return frame
        return placed(frame).assign(trial=lambda new: new["placed"])[list(frame.columns)]

    pairs = frames.comparison
    if len(pairs):
        sides = placed(pairs).rename(columns={"placed": "one", "group": "side"})
        both = placed(sides, "reference")
        both = both[both["side"].eq(both["group"])]
        pairs = both.assign(trial=both["one"], reference=both["placed"])[list(pairs.columns)]
    return dataclasses.replace(
        frames,
        trials=found.assign(setting="").drop(columns=["base", "source"]),
        metrics=moved(frames.metrics),
        spectra=moved(frames.spectra),
        comparison=pairs.reset_index(drop=True),
        drifts=moved(frames.drifts),
        interventions=moved(frames.interventions),
    )


def compared(frames: Frames) -> pd.DataFrame:
    """One row per configuration and setting, at its best rate and checkpoints: `COLUMNS`.

    ``stable_rank`` is sr(dW), geometric mean over layers and seeds; ``size`` ||dW|| / ||W|| and
    ``rho`` medians of the trials' medians over layers; ``value`` the best metric. ``ratio`` and
    ``difference`` are sr(dW) over that of the setting ``against``, and the metric beside its,
    paired by seed: that is the first of the configuration's settings, the one without a name if it
    has one. Intervals are over seeds; without two of them there is none.

    Raises ValueError where `frames` hold one setting only.
    """
    trials = frames.all_trials
    if trials.empty or not has_several(trials):
        raise ValueError("expected trials of several settings; found one")
    apart = by_setting(frames)
    picked = apart.chosen
    bases = labelled(trials)
    bases = bases[bases["trial"].eq(bases["source"])]  # a full fine-tune once
    told = bases["setting"].where(bases["method"].eq("lora"), bases["setting"].map(of_full))
    bases = bases[["trial", "base"]].assign(setting=told)
    seen = _measured(apart, picked).drop(columns="setting").merge(bases, on="trial")
    edges = apart.learning_rates[["model", "task", "method", "rank", "scaling", "edge"]]
    seen = seen.merge(edges, on=["model", "task", "method", "rank", "scaling"]).assign(
        model=lambda rows: rows["base"]
    )
    rows = []
    for key, part in seen.groupby(GROUP, dropna=False, sort=True):
        names = sorted(part["setting"].unique())
        own = {name: part[part["setting"].eq(name)].set_index("seed") for name in names}
        rows += [
            dict(zip(GROUP, key, strict=True)) | _row(name, own[name], names[0], own[names[0]])
            for name in names
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _measured(frames: Frames, picked: pd.DataFrame) -> pd.DataFrame:
    """The chosen trials with ``log_rank``, ``size`` and ``rho`` at their best checkpoints."""
    spectra = at_best(picked, frames.spectra, "dW")
    spectra = spectra.assign(log_rank=np.log(spectra["stable_rank"].astype(float)))
    logs = spectra.groupby("trial", as_index=False).agg(log_rank=("log_rank", "mean"))
    sizes = frames.drifts[["trial", "step", "size", "rho"]].rename(columns={"step": "best_step"})
    return picked.merge(logs, on="trial", how="left").merge(
        sizes, on=["trial", "best_step"], how="left"
    )


def _row(name: str, own: pd.DataFrame, first: str, other: pd.DataFrame) -> dict[str, Any]:
    """``own`` and ``other``: the trials of two settings, by seed."""
    row: dict[str, Any] = {
        "setting": name,
        "learning_rate": own["learning_rate"].iloc[0],
        "edge": own["edge"].iloc[0],
        "value": float(own["reported"].mean()),
        "seeds": len(own),
        "size": float(own["size"].median()),
        "rho": float(own["rho"].median()),
    }
    row |= _named("stable_rank", _mean(own["log_rank"]), exp=True)
    if name == first:
        return row
    row["against"] = first
    ratio, difference = (
        _mean((own[column] - other[column]).dropna()) for column in ("log_rank", "reported")
    )
    return row | _named("ratio", ratio, exp=True) | _named("difference", difference)


def _mean(values: pd.Series) -> Interval:
    """Over seeds."""
    known = values.astype(float).dropna()

    def mean(kept: list[Any]) -> float:
        return float(known[known.index.isin(kept)].mean()) if kept else np.nan

    return jackknife(list(known.index), mean)


def _named(name: str, found: Interval, *, exp: bool = False) -> dict[str, float]:
    numbers = [found.estimate, found.low, found.high]
    numbers = [float(np.exp(x)) for x in numbers] if exp else numbers
    return dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))
