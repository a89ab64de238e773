"""One answer to H2 per model and task: the dose, the loss, the premise, brackets and the paired
table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import Interval, percentiles, stratified_draws
from rankscope.analysis.selection import sign_of
from rankscope.analysis.threshold.dose import Fits, fits
from rankscope.analysis.threshold.evidence import NEAR, Evidence, evidence
from rankscope.analysis.threshold.losses import (
    attained,
    best_by_configuration,
    brackets,
    loss,
    premise,
    tolerated,
)

# share of the way to the next checkpoint by which the ends of the dose are moved out: a point
# anywhere in a bracket is on average a quarter of it from its middle; less covers too little, more
# too much (docs/results/calibration)
BETWEEN = 0.25
FEWEST = 6  # trials of one model and task
HALF, TENTH = 0.5, 0.1  # shares of the gain
DEVIATIONS = 3  # the smallest loss looked for, in standard deviations of an evaluation
PLATEAU = float(np.log(1.25))  # a threshold leaves the stable rank a range in which little is lost
PREMISE = 0.8  # share of the best gain that is reached near sr(W); of that, kept on the plateau
NEGLIGIBLE = 0.1  # of the gain: a smaller loss counts as none
UNLEARNT = "nothing was learnt"
GRADUAL = "half the gain is lost, but a decline from the start is not excluded"
UNKNOWN = Interval(np.nan, np.nan, np.nan, "trial", 0)

Answer = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Threshold:
    """What one model and task say about the drift past which performance is lost. NaN: unknown.

    Drifts are magnitudes u of log(sr(W + dW) / sr(W)) in the dominating ``direction``. ``constant``
    is c0 (its ``source``), ``noise`` the standard deviation of an evaluation, ``near`` the mean of
    the references P0, ``excess`` what choosing the best rates was expected to add to it and has
    been taken off, ``gain`` P0 - c0, ``best`` the best attained anywhere V, ``premise`` the best
    gain near sr(W) over the best gain anywhere. ``half`` is the drift at which half the gain is
    lost, ``first`` the drift at which the line has fallen from its own plateau by the share
    ``first_share`` of the gain: a tenth, or what three standard deviations of an evaluation are.
    ``plateau`` is the drift at which the fitted line turns down, 0 for a decline from the start,
    ``kept`` the share of the gain that the line has before it, where there is a gain. ``loss`` is
    P0 less the mean metric of the deepest quarter of the drifted checkpoints, which lie beyond
    ``deep``; the share ``held`` of them is worse than three standard deviations of an evaluation
    beyond a constant answer and counts as no more. ``line`` holds the corners of the fitted line
    (log_drift, value). ``brackets``, ``tolerated`` and ``spread`` are the model of thresholds that
    vary, ``attained`` the paired table. ``answer`` and ``reason`` follow the rules of
    docs/analysis.md. Of a metric that is better when it is lower, ``constant``, ``near``, ``best``,
    ``line`` and what was attained are as measured; ``gain``, ``loss`` and ``excess`` say how much
    better or worse, as for all metrics.
    """

    model: str
    task: str
    answer: Answer
    reason: str
    direction: str = "none"
    trials: int = 0
    seeds: int = 0
    checkpoints: int = 0
    references: int = 0
    reach: float = np.nan
    base: float = np.nan
    constant: float = np.nan
    source: str = "unknown"
    noise: float = np.nan
    near: float = np.nan
    best: float = np.nan
    gain: float = np.nan
    premise: Interval = UNKNOWN
    half: Interval = UNKNOWN
    first: Interval = UNKNOWN
    first_share: float = np.nan
    plateau: Interval = UNKNOWN
    kept: Interval = UNKNOWN
    loss: Interval = UNKNOWN
    deep: float = np.nan
    held: float = np.nan
    excess: float = np.nan
    line: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["log_drift", "value"]), repr=False
    )
    brackets: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    tolerated: Interval = UNKNOWN
    spread: float = np.nan
    attained: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    greater_is_better: bool = True

    @property
    def sign(self) -> float:
        """-1 where sr(W + dW) falls."""
        return -1.0 if self.direction == "falls" else 1.0

    def ratio(self, dose: Interval) -> tuple[float, float, float]:
        """sr(W + dW) / sr(W) at a dose with its interval, in order of size; 0 or infinity where it
        is open."""
        mid, *ends = (float(np.exp(self.sign * u)) for u in (dose.estimate, dose.low, dose.high))
        return mid, min(ends), max(ends)

    @property
    def stable_rank(self) -> tuple[float, float, float]:
        """s*_0.5 and its interval: median sr(W) times the ratio."""
        mid, low, high = (self.base * ratio for ratio in self.ratio(self.half))
        return mid, low, high

    @property
    def identified(self) -> bool:
        """Whether the place at which half of the gain is lost has an upper bound inside the
        data."""
        return bool(np.isfinite(self.half.high))

    def to_frame(self) -> pd.DataFrame:
        """All numbers as one row; intervals as ``name``, ``name_low``, ``name_high``."""
        row: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Interval):
                row |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
            elif not isinstance(value, pd.DataFrame) and (name != "greater_is_better" or not value):
                row[name] = value
        for name, dose in (
            ("half_ratio", self.half),
            ("first_ratio", self.first),
            ("plateau_ratio", self.plateau),
            ("tolerated_ratio", self.tolerated),
        ):
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), self.ratio(dose), strict=True))
        names = ("stable_rank", "stable_rank_low", "stable_rank_high")
        return pd.DataFrame([row | dict(zip(names, self.stable_rank, strict=True))])


def thresholds(
    frames: Frames, *, rng: np.random.Generator, resamples: int = 1000
) -> list[Threshold]:
    """One `Threshold` per model and task, from LoRA at every learning rate and evaluated
    checkpoint."""
    bases = frames.spectra[frames.spectra["matrix"].eq("W")].drop_duplicates(["trial", "layer"])
    known = {(row["model"], row["task"]): row for row in frames.baselines.to_dict("records")}
    found = []
    for (model, task), own in frames.trials[frames.trials["method"].eq("lora")].groupby(
        ["model", "task"]
    ):
        points = frames.checkpoints[frames.checkpoints["trial"].isin(own["trial"])]
        constant, source, noise = (
            known[model, task][name] for name in ("constant", "source", "noise")
        )
        base = float(bases.loc[bases["trial"].isin(own["trial"]), "stable_rank"].median())
        described: dict[str, Any] = {
            "model": str(model),
            "task": str(task),
            "source": source,
            "base": base,
        }
        sign = float(sign_of(own).iloc[0])
        turned = points.assign(metric_value=sign * points["metric_value"])
        one = threshold(turned, sign * constant, noise, described, rng=rng, resamples=resamples)
        found.append(one if sign > 0 else _as_measured(one))
    return found


def _as_measured(found: Threshold) -> Threshold:
    """Values of a metric that is better when it is lower, turned back."""
    line, attained_ = found.line, found.attained
    if len(attained_):
        attained_ = attained_.assign(near=-attained_["near"], beyond=-attained_["beyond"])
    return replace(
        found,
        constant=-found.constant,
        near=-found.near,
        best=-found.best,
        line=line.assign(value=-line["value"].astype(float)),
        attained=attained_,
        greater_is_better=False,
    )


def threshold(
    points: pd.DataFrame,
    constant: float,
    noise: float,
    described: dict[str, Any],
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Threshold:
    """The answer of the `checkpoints` of one model and task, whose metric is better when it is
    greater; `described` holds its names (model, task)."""
    data = evidence(points, constant, noise)
    known: dict[str, Any] = described | {
        "constant": constant,
        "noise": noise,
        "trials": data.trials,
        "seeds": points["seed"].nunique(),
        "checkpoints": len(points),
        "references": len(data.near.y),
        "reach": data.reach,
        "direction": "falls" if data.sign < 0 else "rises",
    }
    problem = _problem(data.trials, len(data.near.y), len(data.far_u), constant)
    if problem:
        return Threshold(answer="undecided", reason=problem, **known)
    excess = data.near.excess(noise)
    draws = stratified_draws(data.strata, resamples, rng)
    found = fits(data, np.vstack([np.ones(data.trials), draws]), excess)
    gain = found.near - constant
    first = _small_share(gain[0], noise)
    values = {
        "half": found.dose(found.near - HALF * gain),
        "first": found.dose(found.plateau - first * gain),
        "plateau": np.where(found.fall > 0, found.turn, np.inf),
    }
    drifted = len(np.unique(data.far_trial))
    for name, v in values.items():
        share = BETWEEN if name == "half" else 1.0  # claims rest on the others: on the safe side
        known[name] = data.to_checkpoints(percentiles(v[0], v[1:], "trial", drifted), share)
    if not gain[0] <= DEVIATIONS * noise:  # a share of what is there
        kept = (found.plateau - constant) / np.where(gain > 0, gain, np.nan)
        known["kept"] = percentiles(kept[0], kept[1:], "trial", drifted)
    known["loss"] = loss(data, found, noise)
    best = best_by_configuration(data.points)
    near = best_by_configuration(data.points[data.points["log_drift"].abs().le(NEAR)])
    known |= {
        "near": found.near[0],
        "best": float(best.mean()),
        "excess": excess,
        "gain": gain[0],
        "first_share": first,
        "deep": data.deep,
        "held": float((data.far_y[data.deepest] <= data.floor).mean()),
    }
    known["premise"] = premise(near, best, constant)
    pairs = brackets(data, constant, float(best.mean()), HALF)
    known["tolerated"], known["spread"] = tolerated(pairs)
    known["line"] = _line(data, found)
    answer, reason = _judged(known)
    return Threshold(answer=answer, reason=reason, brackets=pairs, attained=attained(data), **known)


def _small_share(gain: float, noise: float) -> float:
    """A tenth of the gain, or what `DEVIATIONS` of an evaluation are of it, if that is more."""
    known = gain > 0 and np.isfinite(noise)
    return float(np.clip(DEVIATIONS * noise / gain, TENTH, 1)) if known else TENTH


def _line(data: Evidence, found: Fits) -> pd.DataFrame:
    """The corners of the fitted line, from no drift to the largest one."""
    corners = [0.0, found.turn[0], found.floor[0], data.reach]
    value = found.plateau[0] - found.fall[0] * np.array([0.0, 0.0, 1.0, 1.0])
    return pd.DataFrame({"log_drift": data.sign * np.array(corners), "value": value})


def _problem(trials: int, near: int, far: int, constant: float) -> str:
    """Why nothing can be estimated, if so."""
    if trials < FEWEST:
        return f"{trials} trials; {FEWEST} are needed"
    if not near:
        return "no checkpoint is near sr(W), so there is nothing to compare with"
    if not far:
        return "no checkpoint drifted by more than a tenth"
    if not np.isfinite(constant):
        return (
            "the metric of a constant answer is not known, so neither is the gain that can be lost"
        )
    return ""


def _judged(known: dict[str, Any]) -> tuple[Answer, str]:
    """The rules for one model and task, in the order in which they are asked."""
    reached, half, loss = (known[name] for name in ("premise", "half", "loss"))
    gain, noise = known["gain"], known["noise"]
    if known["best"] - known["constant"] <= DEVIATIONS * noise:
        return "undecided", UNLEARNT
    if reached.high < PREMISE:
        return "contradicted", "the premise fails: models near sr(W) do not reach the best values"
    if gain <= DEVIATIONS * noise:
        return "undecided", "the gain near sr(W) is within the noise of an evaluation"
    if known["reach"] > PLATEAU and loss.high < NEGLIGIBLE * gain:
        return "contradicted", "a loss of a tenth of the gain is excluded"
    if not np.isfinite(half.high):
        return "undecided", "half the gain is not shown to be lost inside the data"
    if not reached.estimate >= PREMISE:
        return "undecided", "models near sr(W) are not shown to reach the best values"
    if HALF * gain < DEVIATIONS * noise:
        return "undecided", "half the gain is within the noise of an evaluation"
    kept = known["kept"]
    if not (known["plateau"].low > PLATEAU and kept.estimate >= PREMISE and kept.low > HALF):
        return "undecided", GRADUAL
    return "supported", "half the gain is lost past a plateau"
