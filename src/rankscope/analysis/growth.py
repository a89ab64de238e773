"""H1: how the stable rank of the update grows with the nominal rank.

The headline is the ratio sr(r_max) / sr(r_min); beside it b of sr(dW) = c r^b. Letters: R
resamples, G clusters, S strata (one intercept each).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.drift import at_best, kind
from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import Interval, cluster_of, draws, holm, interval, jackknife

GROUP = ["model", "task", "scaling"]
DESIGN = ["model", "scaling", "seeds", "ranks"]
EVERY = "all"  # kinds of layer together
LOWEST = 2  # a rank of 1 has sr = 1 by definition and says nothing about growth
SLOW = 0.5  # "much more slowly than r": more slowly than the square root of r
PUBLISHED = (0.23, 0.30)  # b on three language models, Yazidi et al. 2026, SSRN 6580122
NOTHING = Interval(np.nan, np.nan, np.nan, "layer", 0)


@dataclass(frozen=True)
class Growth:
    """What the configurations that learnt say, at ranks of 2 and more that every seed of a group
    has.

    A group is a model, task and scaling rule. ``ratio`` is the mean over layers, seeds and
    groups of sr(dW) at the largest rank over that at the smallest, geometric; ``exponent`` is
    b, one intercept per group and layer. Both are over the groups of one design (model, rule,
    seeds and ranks): the one with most seeds, then most groups; ``groups`` has one row per
    group and kind of layer, ``primary`` where it is among them. ``p`` there tests b = 1/2,
    ``p_holm`` is adjusted for all rows. ``points`` has one row per chosen LoRA trial and layer,
    also at ranks that the fits leave out (``used``), ``left_out`` the groups that learnt
    nothing or have fewer than two such ranks.
    """

    ratio: Interval
    exponent: Interval
    groups: pd.DataFrame
    points: pd.DataFrame
    left_out: list[str] = field(default_factory=list)

    @property
    def primary(self) -> pd.DataFrame:
        """The rows of ``groups`` that the headline is about, all kinds of layer together."""
        return self.groups[self.groups["primary"] & self.groups["kind"].eq(EVERY)]


def growth(frames: Frames, *, rng: np.random.Generator, resamples: int = 1000) -> Growth:
    """Fit the growth of sr(dW) at the best checkpoints of the chosen LoRA trials that learnt."""
    points = _points(frames)
    used = points[points["used"]]
    rows: list[dict[str, Any]] = []
    for key, part in used.groupby(GROUP, dropna=False):
        kinds = dict(iter(part.groupby("kind"))) if part["kind"].nunique() > 1 else {}
        names = dict(zip(GROUP, key, strict=True))
        for name, own in {EVERY: part, **kinds}.items():
            rows.append(names | {"kind": name} | _described(own, rng=rng, resamples=resamples))
    groups = pd.DataFrame(rows, columns=[*GROUP, "kind", *_COLUMNS])
    groups["p_holm"] = holm(groups["p"].to_numpy(dtype=float))
    groups["primary"] = _primary(groups)
    main = used.merge(groups.loc[groups["primary"] & groups["kind"].eq(EVERY), GROUP], on=GROUP)
    told = points.loc[~points["used"], GROUP].merge(
        groups[GROUP], on=GROUP, how="left", indicator=True
    )
    missing = told.loc[told["_merge"].eq("left_only"), GROUP].drop_duplicates()
    return Growth(
        ratio=ratio(main),
        exponent=exponent(main, rng=rng, resamples=resamples),
        groups=groups,
        points=points,
        left_out=[", ".join(map(str, row)) for row in missing[["task", "scaling"]].to_numpy()],
    )


def _points(frames: Frames) -> pd.DataFrame:
    chosen = frames.chosen[frames.chosen["method"].eq("lora") & frames.chosen["rank"].notna()]
    points = at_best(chosen, frames.spectra, "dW")
    points = points[points["stable_rank"].gt(0)].assign(rank=points["rank"].astype(float))
    points = points.assign(
        utilisation=points["stable_rank"] / points["rank"], kind=kind(points["layer"])
    )
    able = points["trial"].isin(frames.learnt_trials["trial"]) & points["rank"].ge(LOWEST)
    seeds = points[able].groupby([*GROUP, "rank"], dropna=False)["seed"].nunique()
    most = points[able].groupby(GROUP, dropna=False)["seed"].nunique()
    cells = seeds.rename("own").reset_index().merge(most.rename("most").reset_index(), on=GROUP)
    common = cells[cells["own"].eq(cells["most"])]
    common = common[common.groupby(GROUP, dropna=False)["rank"].transform("size").ge(2)]
    held = points.merge(common[[*GROUP, "rank"]].assign(used=True), on=[*GROUP, "rank"], how="left")
    return points.assign(used=held["used"].eq(True).to_numpy() & able.to_numpy())


def _primary(groups: pd.DataFrame) -> pd.Series:
    """The groups of the design with most seeds, then most groups, then most ranks."""
    if groups.empty:
        return pd.Series(dtype=bool)
    designs = groups.groupby(DESIGN, dropna=False)
    size = designs["task"].transform("nunique")
    order = pd.DataFrame(
        {
            "seeds": groups["seeds"].str.count(",") + 1,
            "groups": size,
            "ranks": groups["ranks"].str.count(","),
        }
    )
    number = designs.ngroup()
    best = number[
        order.sort_values(["seeds", "groups", "ranks"], ascending=False, kind="stable").index[0]
    ]
    return number.eq(best)


def ratio(points: pd.DataFrame) -> Interval:
    """sr at the largest rank over sr at the smallest: geometric mean over layers and
    groups, interval over seeds.

    One seed: interval over layers, which says nothing about new seeds.
    """
    if points.empty:
        return NOTHING
    cluster, _ = cluster_of(points, "layer")
    cells = points.assign(log=np.log(points["stable_rank"].astype(float)))
    ranks = cells.groupby(GROUP, dropna=False)["rank"]
    ends = {
        "low": cells["rank"].eq(ranks.transform("min")),
        "high": cells["rank"].eq(ranks.transform("max")),
    }
    keys = [*GROUP, "layer", "seed"]
    sides = {name: cells[at].groupby(keys, dropna=False)["log"].mean() for name, at in ends.items()}
    change = (sides["high"] - sides["low"]).dropna().groupby(cluster).mean()
    return jackknife(
        list(change.index),
        lambda kept: float(change[change.index.isin(kept)].mean()) if kept else np.nan,
        cluster,
    ).exp()


def exponent(points: pd.DataFrame, *, rng: np.random.Generator, resamples: int) -> Interval:
    """b of log sr = a_s + b log r by least squares, an intercept a_s per group and layer.

    Clusters are seeds when there are at least two; otherwise layers, and the interval then says
    nothing about new seeds. NaN where no stratum has two ranks.
    """
    if points.empty:
        return NOTHING
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
    return table.assign(
        utilisation=groups["utilisation"].median(), count=groups.size()
    ).reset_index()


_COLUMNS = (
    "c", "b", "b_low", "b_high", "p", "ratio", "ratio_low", "ratio_high", "cluster", "clusters",
    "seeds",
    "ranks", "p10", "p50", "p90", "utilisation_at_highest",
)  # fmt: skip


def _described(part: pd.DataFrame, *, rng: np.random.Generator, resamples: int) -> dict[str, Any]:
    """One row of `Growth.groups`."""
    b, grown = exponent(part, rng=rng, resamples=resamples), ratio(part)
    ranks = np.sort(part["rank"].unique())
    low, mid, high = part["stable_rank"].quantile([0.1, 0.5, 0.9])
    # The law's c at the group's own mean, so that the drawn line passes through the cloud.
    offset = (np.log(part["stable_rank"]) - b.estimate * np.log(part["rank"])).mean()
    values = (
        float(np.exp(offset)), b.estimate, b.low, b.high, b.p(SLOW), grown.estimate, grown.low,
        grown.high,
        b.cluster, b.clusters, ", ".join(map(str, sorted(part["seed"].unique()))),
        ", ".join(f"{r:g}" for r in ranks), float(low), float(mid), float(high),
        float(part.loc[part["rank"].eq(ranks[-1]), "utilisation"].median()),
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))


def _moments(
    groups: NDArray[np.integer],
    strata: NDArray[np.integer],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Sums of 1, x, y, xx, xy per cluster and stratum: (5, G, S)."""
    shape = (int(groups.max()) + 1, int(strata.max()) + 1)
    cell = groups * shape[1] + strata
    weights = (np.ones_like(x), x, y, x * x, x * y)
    return np.stack(
        [np.bincount(cell, w, minlength=shape[0] * shape[1]).reshape(shape) for w in weights]
    )


def _slope(weights: NDArray[np.float64], cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slopes with stratum intercepts for cluster `weights` (R, G): (R,), NaN where undetermined."""
    count, sx, sy, sxx, sxy = np.einsum("rg,kgs->krs", weights, cells)
    held = count > 0
    share = np.divide(sx, count, out=np.zeros_like(sx), where=held)
    above = (sxy - share * sy).sum(axis=1)
    below = (sxx - share * sx).sum(axis=1)
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 1e-9)
