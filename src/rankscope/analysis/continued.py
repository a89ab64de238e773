"""H3's direct question: the same configuration trained for longer, beside itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import Interval, cluster_of, mean_interval

SAME = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]


@dataclass(frozen=True)
class Continued:
    """Pairs of trials that differ in their budget alone, LoRA and full fine-tuning alike.

    ``pairs`` has one row per trial of a longer arm whose twin is there: the configuration,
    ``budget``, and of both ``trial``, (``_once`` for the twin) ``log_drift`` (at the last step),
    ``best`` and ``last`` (validation metric). ``drift`` is the mean change of |log_drift|, ``best``
    and ``last`` those of the metric.
    """

    drift: Interval
    best: Interval
    last: Interval
    pairs: pd.DataFrame


def continued(frames: Frames, *, rng: np.random.Generator, resamples: int = 1000) -> Continued:
    """Sets every trial of a budget above 1 beside the one with the same configuration, rate and
    seed."""
    ends = frames.drifts.sort_values("step").groupby("trial")["log_drift"].last()
    columns = [*SAME, "trial", "log_drift", "best", "last"]
    plain, more = (
        rows.assign(log_drift=rows["trial"].map(ends).astype("float64"))
        for rows in (frames.trials, frames.continued[frames.continued["budget"].gt(1)])
    )
    pairs = more[[*columns, "budget", "metric"]].merge(
        plain[columns], on=SAME, suffixes=("", "_once")
    )
    change = pd.DataFrame(
        {
            "drift": pairs["log_drift"].abs() - pairs["log_drift_once"].abs(),
            "best": pairs["best"] - pairs["best_once"],
            "last": pairs["last"] - pairs["last_once"],
        }
    )
    cluster, labels = cluster_of(pairs.assign(pair=range(len(pairs))), "pair")
    drifted, best, last = (
        mean_interval(change[name], labels, cluster, rng=rng, resamples=resamples)
        for name in ("drift", "best", "last")
    )
    return Continued(drifted, best, last, pairs)
