"""Spectra at each trial's best checkpoint, and the drift of W + dW from W."""

from __future__ import annotations

import numpy as np
import pandas as pd

LABELS = ["trial", "model", "task", "method", "rank", "scaling", "learning_rate", "seed"]


# relative distance of its bounds from which on a stable rank is not known:
# ten times what training asks
WIDTH = 1e-2


def known(spectra: pd.DataFrame) -> pd.DataFrame:
    """`spectra` with NaN for each stable rank whose bounds lie further apart than `WIDTH`.

    Newer stores hold NaN there already; older ones may hold a number that is nothing but an upper
    bound.
    """
    if spectra.empty:
        return spectra
    lower, upper = (spectra[name].astype(float) for name in ("lower", "upper"))
    wide = upper > lower * (1 + WIDTH)
    return spectra.assign(stable_rank=spectra["stable_rank"].mask(wide)) if wide.any() else spectra


def at_best(trials: pd.DataFrame, spectra: pd.DataFrame, matrix: str) -> pd.DataFrame:
    """Rows of `spectra` for `matrix` at each trial's best step, else its last measured one, with
    its labels.

    Undefined stable ranks (a zero update) are left out.
    """
    rows = spectra[spectra["matrix"].eq(matrix) & spectra["trial"].isin(trials["trial"])]
    rows = rows[rows["stable_rank"].notna()]
    if rows.empty:
        empty = rows.drop(columns="trial")
        return pd.concat([trials[LABELS].iloc[:0], empty], axis=1).reset_index(drop=True)
    return trials[LABELS].merge(rows.merge(_best(trials, rows), on=["trial", "step"]), on="trial")


def _best(trials: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Each trial with its best step, else its last measured one."""
    steps = rows[["trial", "step"]].drop_duplicates()
    wanted = steps["trial"].map(trials.set_index("trial")["best_step"]).astype(float)
    # The best step sorts last where it was measured; otherwise the last measured one does.
    steps = steps.assign(hit=steps["step"].eq(wanted)).sort_values(["hit", "step"])
    return steps.drop_duplicates("trial", keep="last")[["trial", "step"]]


def condensed(trials: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """The rows of `spectra` that are needed beside their `drift`: those of W, and those at
    each trial's best step."""
    spectra = known(spectra)
    kept = [spectra["matrix"].eq("W")]
    for matrix in ("dW", "W+dW"):
        rows = spectra[spectra["matrix"].eq(matrix) & spectra["stable_rank"].notna()]
        best = pd.MultiIndex.from_frame(_best(trials, rows))
        at = pd.MultiIndex.from_frame(spectra[["trial", "step"]]).isin(best)
        kept.append(spectra["matrix"].eq(matrix) & at)
    return spectra[kept[0] | kept[1] | kept[2]]


def drift(spectra: pd.DataFrame) -> pd.DataFrame:
    """How far W + dW has drifted from W, for every trial at every measured step.

    ``log_drift`` is the median over layers of log(sr(W + dW) / sr(W)): 0 is no drift, log(1/2) a
    stable rank that has halved. ``low`` and ``high`` are the quartiles over layers, ``layers``
    their number. ``size`` and ``rho`` are the medians over layers of ||dW||_F / ||W||_F and of
    sigma_1(dW) / sigma_1(W). Columns: trial, step and these. Median of logarithms, because layers
    differ in shape and in sr(W).
    """
    spectra = known(spectra)
    defined = spectra[spectra["stable_rank"].gt(0)]
    base = defined[defined["matrix"].eq("W")].drop_duplicates(["trial", "layer"])
    moved = defined[defined["matrix"].eq("W+dW")]
    pairs = _ratio(moved, base, "stable_rank")
    groups = np.log(pairs).groupby(["trial", "step"])
    table = groups.quantile(np.array([0.25, 0.5, 0.75])).unstack()
    names = ["low", "log_drift", "high"]
    table = table.set_axis(names[: table.shape[1]], axis=1).reindex(columns=names)
    updates = spectra[spectra["matrix"].eq("dW")]
    size, rho = (
        _ratio(updates, base, column).groupby(["trial", "step"]).median()
        for column in ("frobenius_norm", "spectral_norm")
    )
    return table.assign(layers=groups.size(), size=size, rho=rho).reset_index()


def _ratio(rows: pd.DataFrame, base: pd.DataFrame, column: str) -> pd.Series:
    """A column of every row over that of W's row of the same trial and layer, indexed by trial and
    step."""
    pairs = rows[["trial", "step", "layer", column]].merge(
        base[["trial", "layer", column]], on=["trial", "layer"], suffixes=("", "_base")
    )
    values = pairs[column].astype(float) / pairs[f"{column}_base"].astype(float)
    return values.set_axis(pd.MultiIndex.from_frame(pairs[["trial", "step"]]))


def checkpoints(trials: pd.DataFrame, metrics: pd.DataFrame, drifts: pd.DataFrame) -> pd.DataFrame:
    """Every evaluation with its drift, size and rho and its trial's labels; what is not finite is
    left out."""
    seen = metrics[["trial", "step", "metric_value", "eval_loss"]].merge(
        drifts[["trial", "step", "log_drift", "size", "rho"]], on=["trial", "step"]
    )
    known = np.isfinite(seen[["metric_value", "log_drift"]].to_numpy(dtype=float)).all(axis=1)
    seen = trials[LABELS].merge(seen.loc[known], on="trial")
    return seen.sort_values(["trial", "step"], ignore_index=True)


def kind(layers: pd.Series) -> pd.Series:
    """The kind of each layer: the last part of its name ("query" of
    ``layer.0.attention.self.query``)."""
    names = {
        name: str(name).rsplit(".", 1)[-1] for name in layers.unique()
    }  # few, on very many rows
    return layers.map(names).astype("str")
