"""All estimates of a study, and one verdict per hypothesis, from its frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from rankscope.analysis.alignment import Alignment, alignment
from rankscope.analysis.design import Check, design
from rankscope.analysis.dynamics import Continued, Dynamics, continued, dynamics
from rankscope.analysis.frames import Frames
from rankscope.analysis.growth import Growth, growth
from rankscope.analysis.rates import Rates, rates
from rankscope.analysis.settings import by_setting, compared, has_several
from rankscope.analysis.threshold import Threshold, thresholds
from rankscope.analysis.verdicts.alignment import alignment_verdict
from rankscope.analysis.verdicts.dynamics import dynamics_verdict
from rankscope.analysis.verdicts.growth import growth_verdict
from rankscope.analysis.verdicts.interventions import interventions_verdict
from rankscope.analysis.verdicts.rates import rates_verdict
from rankscope.analysis.verdicts.threshold import threshold_verdict
from rankscope.analysis.verdicts.verdict import Verdict


@dataclass(frozen=True)
class Conclusions:
    """Verdicts on H1 to H5, and H6 where trials were edited; the estimates they rest on, what the
    study's design can answer, and what to keep in mind with all of them.

    Every estimate has tables of its own: ``thresholds``, ``growth.groups``, ``dynamics.tasks``,
    ``alignment.contrasts``, ``rates.groups``; `to_frame` has all verdicts.
    """

    verdicts: tuple[Verdict, ...]
    learning_rates: pd.DataFrame
    growth: Growth
    thresholds: tuple[Threshold, ...]
    dynamics: Dynamics
    continued: Continued
    alignment: Alignment
    rates: Rates
    design: tuple[Check, ...]
    counts: dict[str, int]
    caveats: tuple[str, ...]
    # `settings.compared`; empty where the study has one setting
    settings: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def threshold(self) -> Threshold:
        """H2's answer where there is one model and one task; ValueError names them where there are
        several."""
        if len(self.thresholds) != 1:
            pairs = ", ".join(f"{t.model}/{t.task}" for t in self.thresholds) or "none"
            raise ValueError(
                f"threshold expected one model and task; found {pairs}. Use thresholds, or "
                "thresholds_frame()."
            )
        return self.thresholds[0]

    def thresholds_frame(self) -> pd.DataFrame:
        """`Threshold.to_frame` of every model and task."""
        return (
            pd.concat([t.to_frame() for t in self.thresholds], ignore_index=True)
            if self.thresholds
            else pd.DataFrame()
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per hypothesis: ``hypothesis``, ``verdict``, ``headline``, ``question``."""
        return pd.DataFrame(
            [
                {
                    "hypothesis": v.hypothesis,
                    "verdict": v.verdict,
                    "headline": v.sentences[0],
                    "question": v.question,
                }
                for v in self.verdicts
            ]
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: one sentence a hypothesis."""
        from rankscope.notebook import table

        return table(
            ["", "answer", "in one sentence"],
            [(v.hypothesis, v.verdict, v.sentences[0]) for v in self.verdicts],
            numbers=[False] * 3,
            title=f"{self.counts['trials'] + self.counts['continued']} trials",
            note="verdicts has all sentences, numbers and caveats; caveats is about all of them.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Verdicts, counts, caveats and chosen learning rates as JSON values, and where there are
        several settings their comparison; what is unknown is null."""
        settings = {"settings": self.settings.to_dict("records")} if len(self.settings) else {}
        return _plain(
            settings
            | {
                "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
                "counts": self.counts,
                "caveats": self.caveats,
                "learning_rates": self.learning_rates.to_dict("records"),
                "design": [dataclasses.asdict(check) for check in self.design],
            }
        )


def conclude(
    frames: Frames,
    *,
    seed: int = 0,
    resamples: int = 1000,
    progress: Callable[[float], None] = lambda share: None,
) -> Conclusions:
    """Answer H1 to H5 for the study in `frames`, and H6 where trials were edited, with bootstrap
    draws from `seed`.

    Never fails on a small or odd study: what cannot be estimated is "undecided", with the reason.
    `progress` is told of each share of the work, 1 in all. Trials of unlike settings are not
    pooled (`rankscope.analysis.settings`).
    """
    counts = _counts(frames.trials) | {"continued": len(frames.continued)}
    several = len(frames.trials) > 0 and has_several(frames.all_trials)
    settings = compared(frames) if several else pd.DataFrame()
    frames = by_setting(frames)
    # One stream per question: an answer does not change when another one is added.
    streams = [np.random.default_rng([seed, number]) for number in range(6)]
    grown = growth(frames, rng=streams[0], resamples=resamples)
    progress(0.2)
    turned = thresholds(frames, rng=streams[1], resamples=resamples)
    progress(0.4)
    moved = dynamics(frames, rng=streams[2], resamples=resamples)
    longer = continued(frames, rng=streams[4], resamples=resamples)
    progress(0.2)
    aligned = alignment(frames, rng=streams[3], resamples=resamples)
    best = rates(frames)
    progress(0.2)
    answers: tuple[Verdict, ...] = (
        growth_verdict(grown),
        threshold_verdict(turned),
        dynamics_verdict(moved, longer),
        alignment_verdict(aligned),
        rates_verdict(best),
    )
    if len(frames.interventions):
        edited = (frames.interventions, frames.all_trials, turned)
        answers += (interventions_verdict(*edited, rng=streams[5], resamples=resamples),)
    return Conclusions(
        verdicts=answers,
        learning_rates=frames.learning_rates,
        growth=grown,
        thresholds=tuple(turned),
        dynamics=moved,
        continued=longer,
        alignment=aligned,
        rates=best,
        design=tuple(_design(frames)),
        counts=counts,
        caveats=tuple(_caveats(frames, counts)),
        settings=settings,
    )


def _design(frames: Frames) -> list[Check]:
    """What this study's design can answer, with the noise of an evaluation that was found."""
    often = frames.metrics.groupby("trial").size()
    trials = frames.trials.merge(
        frames.baselines[["model", "task", "noise"]], on=["model", "task"], how="left"
    )
    return design(trials.assign(evaluations=trials["trial"].map(often).fillna(0)))


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


def _caveats(frames: Frames, counts: dict[str, int]) -> list[str]:
    """What confounds every answer of this study."""
    said = []
    trials, found = frames.trials, frames.learning_rates
    idle = int((~frames.learnt["learnt"]).sum()) if len(frames.learnt) else 0
    if idle:
        said.append(
            f"{idle} of {len(frames.learnt)} configurations learnt nothing: their best value "
            "is within three "
            f"standard deviations of an evaluation of {_start(frames)}. H1, H3, H4 and H5 "
            "leave them out."
        )
    if collapsed := int(frames.one_answer["at_last"].sum()):
        said.append(
            f"{collapsed} of {counts['trials']} trials end with one answer for every row, up to "
            "rounding: what is recorded there is the metric of a constant answer."
        )
    if counts["seeds"] < 2:
        said.append(
            "With one seed the spread between repetitions is unknown; intervals do not cover it."
        )
    elif counts["seeds"] == 2:
        said.append(
            "With two seeds, intervals over seeds have one degree of freedom: they are right, "
            "and wide."
        )
    rules = set(trials["scaling"].dropna())
    if rules == {"alpha/r"} and counts["ranks"] > 1:
        said.append(
            "With a fixed alpha the scale alpha/r shrinks as r grows: rank and scale change "
            "together here."
        )
    if len(trials):
        unknown = trials.loc[trials["untrained"].isna(), "metric"]
        if len(unknown):  # a language model, where it says its start
            head = (
                "If a head was trained along with the update, its"
                if unknown.str.endswith("loss").all()
                else "The classifier head is trained along with the update; its"
            )
            said.append(f"{head} share in the metric is not separated.")
        said.append(_optimism(found, lower=not trials["greater_is_better"].all()))
    for edge in ("largest tried", "smallest tried", "only one tried"):
        hits = int(found["edge"].eq(edge).sum())
        if hits:
            said.append(
                f"In {hits} of {len(found)} configurations the best learning rate is the {edge}."
            )
    if counts["diverged"]:
        said.append(
            f"{counts['diverged']} of {counts['trials']} trials diverged; they count up to "
            "their last "
            "finite evaluation."
        )
    said.append(
        "Intervals are 95 % each and not adjusted for their number; p-values of several groups "
        "or pairs are, by Holm's "
        "method."
    )
    return said


def _start(frames: Frames) -> str:
    """What learning is measured from, in words."""
    before = frames.baselines["source"].eq("before training")
    if before.all():
        return "the pretrained model's"
    return "a constant answer, or the pretrained model's" if before.any() else "a constant answer"


def _optimism(rates: pd.DataFrame, *, lower: bool) -> str:
    """How choosing and reporting on the same rows flatters, or by how much it would have."""
    known = rates["optimism"].dropna()
    if known.empty:
        return (
            "Rates and checkpoints are chosen on the validation data that they are reported on, so "
            f"best values are somewhat too {'good' if lower else 'high'}; validation_split in the "
            "study file parts the two."
        )
    return (
        "Rates and checkpoints are chosen on a part of the validation rows and reported on the "
        f"others: there the best values are {'worse' if lower else 'lower'} by {known.mean():.3f}. "
        "The curves of H2 and H3 "
        "are those of the rows that choose."
    ).replace("-", "−")


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
