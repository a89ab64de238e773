"""H2: the drift of W + dW past which validation performance declines, or that none can be seen.

Letters: N checkpoints, G trials, R resamples, J candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.bootstrap import LEVEL, draws
from rankscope.analysis.brokenline import (
    Array,
    Fits,
    Knots,
    candidates,
    flipped,
    ramp_basis,
    refined,
    resampled,
    rise_basis,
    sums,
)
from rankscope.analysis.drift import drift

FEWEST = 12  # trials of one model and task: fewer cannot carry a change-point and its test
ERROR_RATE = 0.05
NEGLIGIBLE_DRIFT = np.log(1.1)  # a study that never drifts by 10 % cannot speak about a threshold
NEGLIGIBLE_CHANGE = 0.02  # of the metric: a smaller loss counts as none


@dataclass(frozen=True)
class Threshold:
    """What one model and task say about s*_r. Drifts are logarithms of sr(W + dW) / sr(W); NaN: unknown.

    ``identified``: the data show a plateau and a decline after it. ``reason`` says why or why not. ``drift``
    is the threshold with its 95 % interval ``low`` .. ``high`` (in order of magnitude), ``stable_rank`` the
    same as sr(W + dW). ``p_flat`` and ``p_straight`` test against no decline and against a decline from the
    start. ``change`` (``change_low``, ``change_high``) is the fall of the metric over the whole range of
    drift. ``curve`` holds the corners of the fitted line.
    """

    model: str
    task: str
    identified: bool
    reason: str
    direction: str = "none"
    trials: int = 0
    checkpoints: int = 0
    left_out: int = 0
    reach: float = np.nan
    base: float = np.nan
    drift: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p_flat: float = np.nan
    p_straight: float = np.nan
    plateau: float = np.nan
    drop: float = np.nan
    change: float = np.nan
    change_low: float = np.nan
    change_high: float = np.nan
    curve: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["drift", "value"]), repr=False)

    @property
    def percent(self) -> float:
        """The threshold as a change of the stable rank in per cent."""
        return 100 * float(np.expm1(self.drift))

    @property
    def stable_rank(self) -> tuple[float, float, float]:
        """s*_r and its interval: median sr(W) times exp(drift)."""
        low, mid, high = (self.base * float(np.exp(x)) for x in (self.low, self.drift, self.high))
        return mid, min(low, high), max(low, high)

    @property
    def flat(self) -> bool:
        """Whether the drift was large and a loss of performance beyond `NEGLIGIBLE_CHANGE` is excluded."""
        return (
            not self.identified
            and self.change_low > -NEGLIGIBLE_CHANGE
            and abs(self.reach) > NEGLIGIBLE_DRIFT
        )


def checkpoints(trials: pd.DataFrame, metrics: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Every evaluation with the drift at that step and its trial's labels; failed ones are left out."""
    labels = trials[["trial", "model", "task", "method", "rank", "scaling", "learning_rate", "seed"]]
    seen = metrics[["trial", "step", "metric_value"]].merge(drift(spectra), on=["trial", "step"])
    seen = seen[np.isfinite(seen["metric_value"].astype(float)) & np.isfinite(seen["drift"])]
    return labels.merge(seen, on="trial").sort_values(["trial", "step"], ignore_index=True)


def thresholds(
    trials: pd.DataFrame,
    metrics: pd.DataFrame,
    spectra: pd.DataFrame,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> list[Threshold]:
    """One `Threshold` per model and task, from LoRA at every learning rate and evaluated checkpoint."""
    lora = trials[trials["method"].eq("lora")]
    points = checkpoints(lora, metrics, spectra)
    bases = spectra[spectra["matrix"].eq("W")].drop_duplicates(["trial", "layer"])
    found = []
    for (model, task), own in lora.groupby(["model", "task"]):
        part = points[points["trial"].isin(own["trial"])]
        base = bases.loc[bases["trial"].isin(own["trial"]), "stable_rank"].median()
        found.append(threshold(part, str(model), str(task), float(base), rng=rng, resamples=resamples))
    return found


def threshold(
    points: pd.DataFrame, model: str, task: str, base: float, *, rng: np.random.Generator, resamples: int
) -> Threshold:
    """Fit and test the broken line on the `checkpoints` of one model and task.

    The direction is that of the larger squared drift; checkpoints on the other side by more than a tenth of
    the reach are left out and counted. Knots by least squares over a grid, refined where the bootstrap puts
    the threshold; interval from the percentiles over resampled trials; tests by the wild bootstrap with one
    sign per trial.
    """
    size = points["drift"].to_numpy(dtype=float)
    sign = 1.0 if (size * np.abs(size)).sum() > 0 else -1.0
    reach = float((sign * size).max()) if len(size) else 0.0
    kept = points[sign * size > -0.1 * reach]
    known: dict[str, Any] = {
        "model": model,
        "task": task,
        "direction": "rises" if sign > 0 else "falls",
        "trials": kept["trial"].nunique(),
        "checkpoints": len(kept),
        "left_out": len(points) - len(kept),
        "reach": sign * reach,
        "base": base,
    }
    if known["trials"] < FEWEST:
        reason = f"{FEWEST} trials with a metric and spectra are needed, there are {known['trials']}"
        return Threshold(**known | {"identified": False, "reason": reason, "direction": "none"})
    if reach <= 1e-9 or kept["metric_value"].nunique() < 2:
        reason = "the stable rank never moved" if reach <= 1e-9 else "the metric never changed"
        return Threshold(**known | {"identified": False, "reason": reason, "direction": "none"})
    clusters, _ = pd.factorize(kept["trial"])
    u = np.maximum(0, sign * kept["drift"].to_numpy(dtype=float))
    fit = _fit(u, kept["metric_value"].to_numpy(dtype=float), clusters, rng, resamples)
    fit |= {name: sign * fit[name] for name in ("drift", "low", "high")}
    fit["curve"] = fit["curve"].assign(drift=sign * fit["curve"]["drift"])
    return Threshold(**known | fit)


def _fit(
    u: Array, y: Array, clusters: NDArray[np.integer], rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    """The fields of `Threshold` that the fit decides, with drifts as magnitudes `u`."""
    weights = draws(int(clusters.max()) + 1, resamples, rng)  # (R, G)
    weights[0] = 1  # the data themselves
    coarse = candidates(u, clusters)
    if not (np.isfinite(coarse.turn) & (coarse.turn > 0)).any():
        reason = "too few trials on either side of any drift"
        return {
            "identified": False,
            "reason": reason,
            "curve": pd.DataFrame(columns=["drift", "value"]),
        } | _nothing()
    tests = _tests(u, y, clusters, coarse, rng, resamples)
    everything = np.ones(len(coarse.rise), dtype=bool)
    at, _ = resampled(sums(u, y, clusters, coarse), weights).best(everything)
    knots = refined(u, clusters, coarse, at)
    fits = resampled(sums(u, y, clusters, knots), weights)
    at, _ = fits.best(np.ones(len(knots.rise), dtype=bool))
    turns = knots.turn[at]  # (R,): inf for no decline, 0 for a decline from the start
    low, high = np.quantile(turns[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    first = int(at[0])
    identified, reason = _judged(turns[0], low, high, tests)
    return {
        "identified": identified,
        "reason": reason,
        "drift": turns[0] if identified else np.nan,
        "low": low if identified else np.nan,
        "high": high if identified else np.nan,
        "plateau": fits.plateau[first, 0],
        "drop": fits.drop[first, 0],
        "curve": _curve(knots, fits, first, float(u.min()), float(u.max())),
        **dict(zip(("p_flat", "p_straight"), tests, strict=True)),
        **_change(u, y, clusters, knots, fits, weights),
    }


def _nothing() -> dict[str, float]:
    return {"drift": np.nan, "low": np.nan, "high": np.nan}


def _judged(turn: float, low: float, high: float, tests: tuple[float, float]) -> tuple[bool, str]:
    if not np.isfinite(turn):
        return False, "no decline fits better than a constant"
    if tests[0] > ERROR_RATE:
        return False, f"a constant does as well (p = {tests[0]:.2f})"
    if turn == 0 or tests[1] > ERROR_RATE:
        p = f" (p = {tests[1]:.2f})" if turn > 0 else ""
        return False, f"performance declines, but from the start: a plateau before it cannot be shown{p}"
    if not np.isfinite(high) or low <= 0:
        return False, "resampling the trials moves the threshold to the end of the range"
    return True, "a plateau, then a decline"


def _tests(
    u: Array, y: Array, clusters: NDArray[np.integer], knots: Knots, rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    """p-values of "no decline" and of "a decline from the start" against everything that `knots` offers.

    Statistic: log of the ratio of squared errors. Its distribution under the null: residuals of the null's
    own best fit, sign drawn per trial, refitted over the same grid (wild cluster bootstrap, Rademacher
    signs).
    """
    parts = sums(u, y, clusters, knots)
    fits = resampled(parts, np.ones((1, parts.yy.shape[0])))
    everything = np.ones(len(knots.rise), dtype=bool)
    signs = rng.choice([-1.0, 1.0], size=(resamples, parts.yy.shape[0]))
    values = []
    for null in (knots.flat, knots.straight):
        at, error = fits.best(null)
        if not np.isfinite(error[0]):  # no decline at all: nothing to hold against it
            values.append(1.0)
            continue
        seen = np.log(error / fits.best(everything)[1])[0]
        one = _values(u, knots, fits, int(at[0]))
        left = y - one
        products = np.bincount(clusters, one * left).astype(float)
        again = flipped(sums(u, one, clusters, knots), sums(u, left, clusters, knots), products, signs)
        drawn = np.log(again.best(null)[1] / again.best(everything)[1])
        values.append((1 + int((drawn >= seen - 1e-12).sum())) / (1 + resamples))
    return values[0], values[1]


def _values(u: Array, knots: Knots, fits: Fits, at: int) -> Array:
    """The fitted curve of candidate `at` on the data themselves, at drifts `u`."""
    rise = rise_basis(u, knots.rise[at])
    ramp = ramp_basis(u, knots.turn[at], knots.floor[at])
    return fits.plateau[at, 0] - fits.rise[at, 0] * rise - fits.drop[at, 0] * ramp


def _curve(knots: Knots, fits: Fits, at: int, low: float, high: float) -> pd.DataFrame:
    corners = np.array([low, knots.rise[at], knots.turn[at], knots.floor[at], high])
    corners = np.unique(np.clip(corners[np.isfinite(corners)], low, high))
    return pd.DataFrame({"drift": corners, "value": _values(corners, knots, fits, at)})


def _change(
    u: Array, y: Array, clusters: NDArray[np.integer], knots: Knots, fits: Fits, weights: Array
) -> dict[str, float]:
    """Slope of the metric on the drift times its reach, past the rise of the best curve without a decline."""
    at, _ = fits.best(knots.flat)
    basis = np.stack([np.ones_like(u), rise_basis(u, knots.rise[at[0]]), u])
    kept = basis if np.ptp(basis[1]) > 0 else basis[[0, 2]]
    starts = np.flatnonzero(np.diff(clusters, prepend=-1))
    gram = np.add.reduceat(kept[:, None] * kept[None], starts, axis=-1) @ weights.T  # (b, b, R)
    moment = np.add.reduceat(kept * y, starts, axis=-1) @ weights.T  # (b, R)
    slopes = np.einsum("bcr,cr->br", np.linalg.pinv(gram.transpose(2, 0, 1)).transpose(1, 2, 0), moment)[-1]
    change = slopes * float(u.max())
    low, high = np.quantile(change[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"change": float(change[0]), "change_low": float(low), "change_high": float(high)}
