"""H2: the drift of W + dW past which validation performance declines, or that none can be seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from rankscope.analysis.brokenfit import Wild
from rankscope.analysis.changepoint import Changepoint, change, changepoint
from rankscope.analysis.comparisons import holm
from rankscope.analysis.learning import learning

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
    start; a threshold needs both, so its p-value ``p`` is the larger one, and ``p_holm`` is adjusted for all
    pairs of model and task. ``p_unlearnt`` tests whether small updates do worse; they do up to a size (see `drift`) of
    ``learnt_from``, which ``learning`` checkpoints have not reached. ``change`` (``change_low``, ``change_high``) is the fall of the metric over the
    whole range of drift. ``curve`` holds the corners of the fitted line. ``fit`` is the line as fitted, in
    magnitudes of drift, also where no threshold is identified.
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
    p_unlearnt: float = np.nan
    learnt_from: float = np.nan
    learning: int = 0
    p_holm: float = np.nan
    correlation: float = np.nan
    plateau: float = np.nan
    drop: float = np.nan
    change: float = np.nan
    change_low: float = np.nan
    change_high: float = np.nan
    curve: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["drift", "value"]), repr=False)
    fit: Changepoint | None = field(default=None, repr=False)

    @property
    def p(self) -> float:
        """Of "no threshold": no decline, or a decline from the start."""
        return max(self.p_flat, self.p_straight)

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
        """Whether a loss beyond `NEGLIGIBLE_CHANGE` is excluded: the drift was large, and there was something to lose."""
        return (
            not self.identified
            and self.p_unlearnt <= ERROR_RATE
            and self.change_low > -NEGLIGIBLE_CHANGE
            and abs(self.reach) > NEGLIGIBLE_DRIFT
        )


def checkpoints(trials: pd.DataFrame, metrics: pd.DataFrame, drifts: pd.DataFrame) -> pd.DataFrame:
    """Every evaluation with the `drift` and `size` at that step and its trial's labels; failed ones are left out."""
    labels = trials[["trial", "model", "task", "method", "rank", "scaling", "learning_rate", "seed"]]
    seen = metrics[["trial", "step", "metric_value"]].merge(drifts, on=["trial", "step"])
    known = np.isfinite(seen[["metric_value", "drift", "size"]].to_numpy(dtype=float)).all(axis=1)
    seen = seen.loc[known]
    return labels.merge(seen, on="trial").sort_values(["trial", "step"], ignore_index=True)


def thresholds(
    trials: pd.DataFrame,
    metrics: pd.DataFrame,
    spectra: pd.DataFrame,
    drifts: pd.DataFrame,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> list[Threshold]:
    """One `Threshold` per model and task, from LoRA at every learning rate and evaluated checkpoint."""
    lora = trials[trials["method"].eq("lora")]
    points = checkpoints(lora, metrics, drifts)
    bases = spectra[spectra["matrix"].eq("W")].drop_duplicates(["trial", "layer"])
    found = []
    for (model, task), own in lora.groupby(["model", "task"]):
        part = points[points["trial"].isin(own["trial"])]
        base = bases.loc[bases["trial"].isin(own["trial"]), "stable_rank"].median()
        found.append(threshold(part, str(model), str(task), float(base), rng=rng, resamples=resamples))
    adjusted = holm(np.array([t.p for t in found]))
    return [judged(t, float(p)) for t, p in zip(found, adjusted, strict=True)]


def threshold(
    points: pd.DataFrame, model: str, task: str, base: float, *, rng: np.random.Generator, resamples: int
) -> Threshold:
    """Fit and test the broken line on the `checkpoints` of one model and task; not `judged` yet.

    The direction is that of the larger squared drift; checkpoints on the other side by more than a tenth of
    the reach are left out and counted. So are those whose updates are too small to have learnt (see `learning`).
    """
    size = points["drift"].to_numpy(dtype=float)
    sign = 1.0 if (size * np.abs(size)).sum() > 0 else -1.0
    reach = float((sign * size).max()) if len(size) else 0.0
    kept = points[sign * size > -0.1 * reach]
    trials = kept["trial"].nunique()
    known = Threshold(
        model=model,
        task=task,
        identified=False,
        reason="",
        trials=trials,
        checkpoints=len(kept),
        left_out=len(points) - len(kept),
        reach=sign * reach,
        base=base,
    )
    if trials < FEWEST:
        reason = f"{FEWEST} trials with a metric and spectra are needed, there are {trials}"
        return replace(known, reason=reason)
    if reach <= 1e-9 or kept["metric_value"].nunique() < 2:
        return replace(
            known, reason="the stable rank never moved" if reach <= 1e-9 else "the metric never changed"
        )
    return _fitted(replace(known, direction="rises" if sign > 0 else "falls"), kept, sign, rng, resamples)


def _fitted(
    known: Threshold, kept: pd.DataFrame, sign: float, rng: np.random.Generator, resamples: int
) -> Threshold:
    """`known` with the broken line through the checkpoints `kept` that have learnt."""
    clusters, names = pd.factorize(kept["trial"])
    u = np.maximum(0, sign * kept["drift"].to_numpy(dtype=float))
    y = kept["metric_value"].to_numpy(dtype=float)
    with np.errstate(divide="ignore"):
        x = np.log(kept["size"].to_numpy(dtype=float))
    rise = learning(u, x, y, clusters, Wild(len(names), resamples, rng))
    learnt = x >= rise.learnt_from
    known = replace(
        known,
        p_unlearnt=rise.p,
        learnt_from=float(np.exp(rise.learnt_from)),
        learning=int((~learnt).sum()),
    )
    clusters, left = pd.factorize(kept["trial"][learnt])
    if len(left) < FEWEST:
        return replace(known, reason=f"{FEWEST} trials that have learnt are needed, there are {len(left)}")
    u, x, y = u[learnt], x[learnt], y[learnt]
    fit = changepoint(u, x, y, clusters, rise.tails, Wild(len(left), resamples, rng))
    if fit is None:
        return replace(known, reason="too few trials on either side of any drift")
    changed, change_low, change_high = change(u, y, clusters)
    return replace(
        known,
        p_flat=fit.p_flat,
        p_straight=fit.p_straight,
        correlation=fit.correlation,
        plateau=fit.plateau,
        drop=fit.drop,
        change=changed,
        change_low=change_low,
        change_high=change_high,
        curve=pd.DataFrame({"drift": sign * fit.corners, "value": fit.at}),
        fit=fit,
    )


def judged(found: Threshold, p_holm: float) -> Threshold:
    """The same with its answer: a threshold, or the reason why none is identified."""
    fit = found.fit
    if fit is None:
        return found
    reason = ""
    if not np.isfinite(fit.turn):
        reason = "no decline fits better than a constant"
    elif found.p_flat > ERROR_RATE:
        reason = f"a constant does as well (p = {found.p_flat:.2f})"
    elif fit.turn == 0 or found.p_straight > ERROR_RATE:
        p = f" (p = {found.p_straight:.2f})" if fit.turn > 0 else ""
        reason = f"performance declines, but from the start: a plateau before it cannot be shown{p}"
    elif p_holm > ERROR_RATE:
        reason = f"p = {found.p:.3f} does not hold for this many models and tasks (Holm: {p_holm:.2f})"
    elif not (np.isfinite(fit.low) and np.isfinite(fit.high)):
        reason = "the interval of the threshold reaches the end of the range"
    if reason and found.p_unlearnt > ERROR_RATE:
        reason += (
            ". Performance doesn't rise with the size of the update either: nothing that was learnt is seen"
        )
    if reason:
        return replace(found, reason=reason, p_holm=p_holm)
    sign = 1.0 if found.direction == "rises" else -1.0
    return replace(
        found,
        identified=True,
        reason="a plateau, then a decline",
        p_holm=p_holm,
        drift=sign * fit.turn,
        low=sign * fit.low,
        high=sign * fit.high,
    )
