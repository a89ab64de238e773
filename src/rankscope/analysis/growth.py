"""H1: how the stable rank of the update grows with the nominal rank, sr(dW) = c r^b.

Letters: R resamples, G clusters, S strata (one intercept each).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.bootstrap import Interval, cluster_of, draws, interval
from rankscope.analysis.comparisons import holm
from rankscope.analysis.drift import at_best, kind

GROUP = ["model", "task", "scaling"]
EVERY = "all"  # kinds of layer together
SLOW = 0.5  # "much more slowly than r": more slowly than the square root of r
PUBLISHED = (0.23, 0.30)  # b on three language models, Yazidi et al. 2026, SSRN 6580122


@dataclass(frozen=True)
class Growth:
    """The fits of sr(dW) = c r^b.

    ``overall`` is b over everything with one intercept per model, task, scaling and layer; ``above_one`` the
    same without r = 1, where sr = 1 by definition. ``groups`` has one row per model, task, scaling and kind of
    layer, and one for all kinds together; ``p`` there tests b = 1/2, ``p_holm`` is adjusted for all rows. ``points`` one per chosen LoRA trial and layer (stable rank, utilisation sr / r); ``band`` the 10th, 50th
    and 90th percentile per group and rank.
    """

    overall: Interval
    above_one: Interval
    groups: pd.DataFrame
    points: pd.DataFrame
    band: pd.DataFrame


def growth(
    trials: pd.DataFrame, spectra: pd.DataFrame, *, rng: np.random.Generator, resamples: int = 1000
) -> Growth:
    """Fit the power law to the LoRA trials of `trials` (give the chosen ones) at their best checkpoints."""
    lora = trials[trials["method"].eq("lora") & trials["rank"].notna()]
    points = at_best(lora, spectra, "dW")
    points = points[points["stable_rank"].gt(0)].assign(rank=points["rank"].astype(float))
    points = points.assign(utilisation=points["stable_rank"] / points["rank"], kind=kind(points["layer"]))
    rows = []
    for key, part in points.groupby(GROUP, dropna=False):
        kinds = dict(iter(part.groupby("kind"))) if part["kind"].nunique() > 1 else {}
        for name, own in {EVERY: part, **kinds}.items():
            b = exponent(own, rng=rng, resamples=resamples)
            rows.append(dict(zip(GROUP, key, strict=True)) | {"kind": name} | _described(own, b))
    groups = pd.DataFrame(rows, columns=[*GROUP, "kind", *_described(points, _NOTHING)])
    groups["p_holm"] = holm(groups["p"].to_numpy(dtype=float))
    return Growth(
        overall=exponent(points, rng=rng, resamples=resamples),
        above_one=exponent(points[points["rank"].gt(1)], rng=rng, resamples=resamples),
        groups=groups,
        points=points,
        band=band(points, [*GROUP, "rank"]),
    )


def exponent(points: pd.DataFrame, *, rng: np.random.Generator, resamples: int) -> Interval:
    """b of log sr = a_s + b log r by least squares, an intercept a_s per model, task, scaling and layer.

    Clusters are seeds when there are at least two; otherwise layers, and the interval then says nothing
    about new seeds. NaN where no stratum has two ranks.
    """
    if points.empty:
        return _NOTHING
    cluster, labels = cluster_of(points, "layer")
    groups, names = pd.factorize(labels)
    strata = points.groupby([*GROUP, "layer"], dropna=False).ngroup().to_numpy()
    x = np.log(points["rank"].to_numpy(dtype=float))
    y = np.log(points["stable_rank"].to_numpy(dtype=float))
    cells = _moments(groups, strata, x, y)
    estimate = _slope(np.ones((1, len(names))), cells)[0]
    replicates = _slope(draws(len(names), resamples, rng), cells)
    return interval(estimate, replicates, cluster, len(names))


def band(points: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """10th, 50th and 90th percentile of sr(dW), median utilisation and count per group of `by`."""
    groups = points.groupby(by, dropna=False)
    quantiles = groups["stable_rank"].quantile(np.array([0.1, 0.5, 0.9])).unstack()
    if quantiles.empty:
        return pd.DataFrame(columns=[*by, "p10", "p50", "p90", "utilisation", "count"])
    table = quantiles.set_axis(["p10", "p50", "p90"], axis=1)
    return table.assign(utilisation=groups["utilisation"].median(), count=groups.size()).reset_index()


_NOTHING = Interval(np.nan, np.nan, np.nan, "layer", 0)


def _described(part: pd.DataFrame, b: Interval) -> dict[str, object]:
    """One row of `Growth.groups`."""
    ranks = np.sort(part["rank"].unique()) if len(part) else np.array([np.nan])
    low, mid, high = part["stable_rank"].quantile([0.1, 0.5, 0.9]) if len(part) else [np.nan] * 3
    # The law's c at the group's own mean, so that the drawn line passes through the cloud.
    offset = (np.log(part["stable_rank"]) - b.estimate * np.log(part["rank"])).mean() if len(part) else np.nan
    return {
        "c": float(np.exp(offset)),
        "b": b.estimate,
        "b_low": b.low,
        "b_high": b.high,
        "p": b.p(SLOW),
        "cluster": b.cluster,
        "clusters": b.clusters,
        "ranks": len(ranks),
        "rank_low": float(ranks[0]),
        "rank_high": float(ranks[-1]),
        "p10": float(low),
        "p50": float(mid),
        "p90": float(high),
        "utilisation_at_highest": float(part.loc[part["rank"].eq(ranks[-1]), "utilisation"].median()),
    }


def _moments(
    groups: NDArray[np.integer], strata: NDArray[np.integer], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sums of 1, x, y, xx, xy per cluster and stratum: (5, G, S)."""
    shape = (int(groups.max()) + 1, int(strata.max()) + 1)
    cell = groups * shape[1] + strata
    weights = (np.ones_like(x), x, y, x * x, x * y)
    return np.stack([np.bincount(cell, w, minlength=shape[0] * shape[1]).reshape(shape) for w in weights])


def _slope(weights: NDArray[np.float64], cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slopes with stratum intercepts for cluster `weights` (R, G): (R,), NaN where undetermined."""
    count, sx, sy, sxx, sxy = np.einsum("rg,kgs->krs", weights, cells)
    held = count > 0
    share = np.divide(sx, count, out=np.zeros_like(sx), where=held)
    above = (sxy - share * sy).sum(axis=1)
    below = (sxx - share * sx).sum(axis=1)
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 1e-9)
