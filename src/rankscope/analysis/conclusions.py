"""A study's frames in, its conclusions out: every estimate, and one verdict per hypothesis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rankscope.analysis.alignment import Alignment, alignment
from rankscope.analysis.continued import Continued, continued
from rankscope.analysis.dynamics import Dynamics, dynamics
from rankscope.analysis.frames import Frames
from rankscope.analysis.growth import Growth, growth
from rankscope.analysis.selection import best_learning_rates, chosen
from rankscope.analysis.threshold import Threshold, thresholds
from rankscope.analysis.threshold_verdict import threshold_verdict
from rankscope.analysis.verdict import Verdict
from rankscope.analysis.verdicts import (
    alignment_verdict,
    dynamics_verdict,
    growth_verdict,
)


@dataclass(frozen=True)
class Conclusions:
    """Verdicts on H1 to H4, the estimates they rest on, and what to keep in mind with all of them."""

    verdicts: tuple[Verdict, ...]
    learning_rates: pd.DataFrame
    growth: Growth
    thresholds: tuple[Threshold, ...]
    dynamics: Dynamics
    continued: Continued
    alignment: Alignment
    counts: dict[str, int]
    caveats: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Verdicts, counts, caveats and chosen learning rates as JSON values; what is unknown is null."""
        return _plain(
            {
                "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
                "counts": self.counts,
                "caveats": self.caveats,
                "learning_rates": self.learning_rates.to_dict("records"),
            }
        )


def conclude(
    trials: pd.DataFrame,
    metrics: pd.DataFrame,
    spectra: pd.DataFrame,
    comparison: pd.DataFrame,
    drifts: pd.DataFrame | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
    progress: Callable[[float], None] = lambda share: None,
) -> Conclusions:
    """Answer H1 to H4 for the study in these frames (see `Frames`), with bootstrap draws from `seed`.

    Never fails on a small or odd study: what cannot be estimated is "undecided", with the reason. `progress`
    is told of each share of the work, 1 in all.
    """
    frames = Frames(trials, metrics, spectra, comparison, pd.DataFrame() if drifts is None else drifts)
    # One stream per question: an answer does not change when another one is added.
    streams = [np.random.default_rng([seed, number]) for number in range(5)]
    picked = chosen(frames.trials)
    rates = best_learning_rates(frames.trials)
    grown = growth(picked, frames.spectra, rng=streams[0], resamples=resamples)
    progress(0.1)
    turned = thresholds(
        frames.trials, frames.metrics, frames.spectra, frames.drifts, rng=streams[1], resamples=resamples
    )
    progress(0.6)
    moved = dynamics(
        frames.trials,
        frames.metrics,
        frames.drifts,
        rng=streams[2],
        resamples=resamples,
        longer=frames.continued,
    )
    longer = continued(frames.trials, frames.continued, frames.drifts, rng=streams[4], resamples=resamples)
    progress(0.2)
    aligned = alignment(frames.trials, frames.spectra, frames.comparison, rng=streams[3], resamples=resamples)
    progress(0.1)
    answers = (
        growth_verdict(grown),
        threshold_verdict(turned),
        dynamics_verdict(moved, longer),
        alignment_verdict(aligned),
    )
    return Conclusions(
        verdicts=answers,
        learning_rates=rates,
        growth=grown,
        thresholds=tuple(turned),
        dynamics=moved,
        continued=longer,
        alignment=aligned,
        counts=_counts(frames.trials) | {"continued": len(frames.continued)},
        caveats=tuple(_caveats(frames.trials, rates)),
    )


def _counts(trials: pd.DataFrame) -> dict[str, int]:
    lora = trials[trials["method"].eq("lora")]
    return {
        "trials": len(trials),
        "diverged": int(trials["status"].eq("diverged").sum()),
        "models": trials["model"].nunique(),
        "tasks": trials["task"].nunique(),
        "ranks": lora["rank"].nunique(),
        "learning_rates": trials["learning_rate"].nunique(),
        "seeds": trials["seed"].nunique(),
        "full": int(trials["method"].eq("full").sum()),
    }


def _caveats(trials: pd.DataFrame, rates: pd.DataFrame) -> list[str]:
    """What confounds every answer of this study."""
    said = []
    counts = _counts(trials)
    if counts["seeds"] < 2:
        said.append("With one seed the spread between repetitions is unknown; intervals do not cover it.")
    elif counts["seeds"] == 2:
        said.append(
            "With two seeds, intervals over seeds have one degree of freedom: they are right, and wide."
        )
    rules = set(trials["scaling"].dropna())
    if rules == {"alpha/r"} and counts["ranks"] > 1:
        said.append(
            "With a fixed alpha the scale alpha/r shrinks as r grows: rank and scale change together here."
        )
    if len(trials):
        said.append(
            "The classifier head is trained along with the update; its share in the metric is not separated."
        )
        said.append(
            "Rates and checkpoints are chosen on the validation data that they are reported on, so best "
            "values are "
            "somewhat too high."
        )
    for edge in ("largest tried", "smallest tried", "only one tried"):
        hits = int(rates["edge"].eq(edge).sum())
        if hits:
            said.append(f"In {hits} of {len(rates)} configurations the best learning rate is the {edge}.")
    if counts["diverged"]:
        said.append(
            f"{counts['diverged']} of {counts['trials']} trials diverged; they count up to their last "
            "finite evaluation."
        )
    said.append(
        "Intervals are 95 % each and not adjusted for their number; p-values of several groups or pairs are, by Holm's "
        "method."
    )
    return said


def _plain(value: Any) -> Any:
    """JSON-able: numpy numbers to Python's, NaN, infinity and NA to None."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
