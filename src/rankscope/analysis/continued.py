"""H3's direct question: the same configuration trained for longer, beside itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankscope.analysis.bootstrap import Interval, cluster_of, mean_interval

SAME = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]


@dataclass(frozen=True)
class Continued:
    """Pairs of trials that differ in their budget alone, LoRA and full fine-tuning alike.

    ``pairs`` has one row per trial of a longer arm whose plain twin is there: the configuration, ``budget``, and of both ``trial``,
    (``_once`` for the twin) ``drift`` (signed, logarithmic, at the last step), ``best`` and ``last`` (validation metric).
    ``drift`` is the mean of |drift| - |drift_once|, ``best`` and ``last`` those of the metric's changes.
    """

    drift: Interval
    best: Interval
    last: Interval
    pairs: pd.DataFrame


def continued(
    trials: pd.DataFrame,
    longer: pd.DataFrame,
    drifts: pd.DataFrame,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Continued:
    """Sets every trial of ``longer`` (budget above 1) beside the one of ``trials`` with the same configuration, rate and seed."""
    ends = drifts.sort_values("step").groupby("trial")["drift"].last()
    columns = [*SAME, "trial", "drift", "best", "last"]
    plain, more = (
        rows.assign(drift=rows["trial"].map(ends).astype("float64"))
        for rows in (trials, longer[longer["budget"].gt(1)])
    )
    pairs = more[[*columns, "budget", "metric"]].merge(plain[columns], on=SAME, suffixes=("", "_once"))
    change = pd.DataFrame(
        {
            "drift": pairs["drift"].abs() - pairs["drift_once"].abs(),
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
