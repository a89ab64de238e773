"""H3: whether drift grows as training goes on, and whether validation falls with it, inside each trial."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankscope.analysis.bootstrap import Interval, cluster_of, mean_interval
from rankscope.analysis.comparisons import holm
from rankscope.analysis.drift import LABELS
from rankscope.analysis.threshold import checkpoints

FEWEST_STEPS = 3


@dataclass(frozen=True)
class Dynamics:
    """Rank correlations inside the LoRA trials, and where each trial's drift ended.

    ``growing`` is the mean over trials of Spearman's correlation of drift magnitude with step (step 0 left
    out: every trial starts at no drift). ``falling`` is that of drift magnitude with the metric over the
    evaluations after the best one; the best itself is left out, because being the highest it would make any
    sequence fall. ``p_growing`` and ``p_falling`` test them against 0, adjusted for being two (Holm). ``trials`` has one row per trial: labels, ``growing``, ``falling``, ``final`` (signed drift
    at the last measured step). ``by_rate`` has one row per method, learning rate and rank.
    """

    growing: Interval
    falling: Interval
    p_growing: float
    p_falling: float
    trials: pd.DataFrame
    by_rate: pd.DataFrame


def dynamics(
    trials: pd.DataFrame,
    metrics: pd.DataFrame,
    drifts: pd.DataFrame,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    longer: pd.DataFrame | None = None,
) -> Dynamics:
    """Correlate drift with time and with the metric inside every trial, and average over LoRA trials.

    ``longer`` trials (another budget) count among them; ``by_rate``, whose drifts are those at the end, leaves them out.
    """
    plain = trials["trial"]
    trials = trials if longer is None or longer.empty else pd.concat([trials, longer], ignore_index=True)
    moved = drifts[drifts["step"].gt(0)].assign(size=lambda rows: rows["drift"].abs())
    seen = checkpoints(trials, metrics, drifts)
    best = seen["trial"].map(trials.set_index("trial")["best_step"]).astype(float)
    after = seen[seen["step"].gt(best)]
    after = after.assign(size=after["drift"].abs())
    table = trials[LABELS].set_index("trial")
    table["growing"] = rank_correlation(moved, "step", "size")
    table["falling"] = rank_correlation(after, "size", "metric_value")
    table["final"] = moved.sort_values("step").groupby("trial")["drift"].last()
    table = table.reset_index()
    lora = table[table["method"].eq("lora")]
    cluster, labels = cluster_of(lora, "trial")
    growing, falling = (
        mean_interval(lora[name], labels, cluster, rng=rng, resamples=resamples)
        for name in ("growing", "falling")
    )
    once = table[table["trial"].isin(plain)]
    by_rate = once.groupby(["method", "learning_rate", "rank"], dropna=False, as_index=False).agg(
        trials=("trial", "size"),
        final=("final", "median"),
        growing=("growing", "mean"),
        falling=("falling", "mean"),
    )
    p = holm(np.array([growing.p(0), falling.p(0)]))
    return Dynamics(
        growing.within(-1, 1), falling.within(-1, 1), float(p[0]), float(p[1]), trials=table, by_rate=by_rate
    )


def rank_correlation(rows: pd.DataFrame, x: str, y: str) -> pd.Series:
    """Spearman's correlation of columns `x` and `y` inside each trial, indexed by trial.

    NaN for fewer than three points and where x or y is constant. Ties take their mean rank.
    """
    names = rows["trial"]
    ranks = rows.groupby("trial")[[x, y]].rank()
    a = ranks[x] - ranks[x].groupby(names).transform("mean")
    b = ranks[y] - ranks[y].groupby(names).transform("mean")
    parts = pd.DataFrame({"ab": a * b, "aa": a * a, "bb": b * b, "n": 1.0}).groupby(names).sum()
    below = (parts["aa"] * parts["bb"]) ** 0.5
    return (parts["ab"] / below.where(below > 0)).where(parts["n"] >= FEWEST_STEPS)
