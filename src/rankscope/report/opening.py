"""The first screen: what was studied, and one sentence and one small picture per hypothesis."""

from __future__ import annotations

import datetime
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.frames import Frames
from rankscope.analysis.verdicts.verdict import Verdict, counted
from rankscope.report.sketches import Sketch, places, sketches
from rankscope.report.theme import rate_name

NAMELESS = "a study"


@dataclass(frozen=True)
class Opening:
    """``facts``: what was studied, in parts. ``answers``: each verdict with its picture, if any.
    ``legend``: (name, colour) of the pictures' lines, where there are several."""

    name: str
    date: str
    facts: list[str]
    answers: list[tuple[Verdict, Sketch | None]]
    legend: list[tuple[str, str]]


def opening(
    frames: Frames, conclusions: Conclusions, *, study_text: str, provenance: Mapping[str, Any]
) -> Opening:
    """What the first screen shows."""
    drawn = sketches(frames, conclusions)
    legend = places(frames) if drawn else []
    return Opening(
        name=study_name(study_text, provenance),
        date=today(),
        facts=facts(frames, missing=provenance.get("missing", 0)),
        answers=[(verdict, drawn.get(verdict.hypothesis)) for verdict in conclusions.verdicts],
        legend=legend if len(legend) > 1 else [],
    )


def study_name(study_text: str, provenance: Mapping[str, Any]) -> str:
    """The study's name: from the store, else from the study file."""
    if isinstance(provenance.get("study"), str):
        return provenance["study"]
    try:
        return str(tomllib.loads(study_text).get("name") or NAMELESS)
    except tomllib.TOMLDecodeError:
        return NAMELESS


def today() -> str:
    """27 November 2026; SOURCE_DATE_EPOCH (seconds) replaces the clock, for reproducible pages."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.datetime.now(datetime.UTC)
    if epoch.isdecimal():
        now = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    return f"{now.day} {now:%B %Y}"


def facts(frames: Frames, *, missing: int = 0) -> list[str]:
    """What was studied, in parts: all finished trials, those of arms counted separately;
    ``missing`` others have not finished."""
    trials = frames.trials
    if trials.empty:
        return ["No trial has finished yet."]
    ranks, rates = sorted(trials["rank"].dropna().unique()), trials["learning_rate"]
    methods = [_ranks(ranks)] if ranks else []
    methods += ["full fine-tuning"] if trials["method"].eq("full").any() else []
    span = f"learning rate {rate_name(rates.min())}"
    if rates.nunique() > 1:
        ends = f"{rate_name(rates.min())} to {rate_name(rates.max())}"
        span = f"{rates.nunique()} learning rates, {ends}"
    return [
        _listed("model", trials["model"]),
        _listed("task", trials["task"]),
        " and ".join(methods),
        span,
        counted(trials["seed"].nunique(), "seed"),
        _trials(frames, missing),
    ]


def _ranks(ranks: list[Any]) -> str:
    if len(ranks) > 6:
        return f"LoRA at {len(ranks)} ranks from {ranks[0]} to {ranks[-1]}"
    return f"LoRA at r = {', '.join(map(str, ranks))}"


def _trials(frames: Frames, missing: int) -> str:
    """170 of 180 trials, 4 of them in an arm with 2 times the budget, 3 diverged."""
    done = len(frames.trials) + len(frames.continued)
    text = (
        counted(done + missing, "trial") if done + missing < 1000 else f"{done + missing:,} trials"
    )
    text = f"{done:,} of {text}" if missing else text
    parts = []
    for budget, part in frames.continued.groupby("budget"):
        parts.append(f"{len(part)} of them in an arm with {budget:g} times the budget")
    every = pd.concat([frames.trials["status"], frames.continued["status"]])
    lost = int(every.eq("diverged").sum())
    parts += [f"{lost} diverged"] if lost else []
    return ", ".join([text, *parts])


def _listed(noun: str, names: Any) -> str:
    names = sorted(set(map(str, names)))
    return f"{noun} {names[0]}" if len(names) == 1 else f"{noun}s {', '.join(names)}"
