"""A summary for a terminal: a line a task, and a line a hypothesis."""

from __future__ import annotations

import re

import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.direction import sign_of
from rankscope.report.theme import rate_name


def summary(conclusions: Conclusions) -> list[str]:
    """What each task's best settings reach, in means over seeds, and each verdict with its first
    sentence, without what stands in round brackets."""
    lines = []
    for task, own in conclusions.learning_rates.groupby("task", sort=False):
        reached = [_best(part) for _, part in own.groupby("method")]
        lines.append(f"{task}: {', '.join(reached)}")
    for verdict in conclusions.verdicts:
        said = re.sub(r" \([^()]*\)", "", verdict.sentences[0])
        lines.append(f"{verdict.hypothesis} {verdict.verdict.upper()}. {said}")
    return lines


def _best(configurations: pd.DataFrame) -> str:
    """Of one task and method, the best of its configurations at their chosen rates."""
    better = configurations["value"] * sign_of(configurations)
    best = configurations.iloc[int(better.argmax())]
    name = "full fine-tuning" if best["method"] == "full" else f"LoRA r = {best['rank']:.0f}"
    return f"{name} {best['metric']} {best['value']:.3f} at {rate_name(best['learning_rate'])}"
