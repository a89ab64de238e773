"""What a terminal shows of the conclusions: the best metric of each rank, a line a hypothesis."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.selection import sign_of
from rankscope.analysis.verdicts.verdict import counted
from rankscope.report.theme import rate_name

EDGE = "*"


def best_by_rank(conclusions: Conclusions) -> list[str]:
    """Lines of text: per model and task the best configuration, then all ranks of each scaling rule
    beside each other, each at the rate that is best over its seeds. None without a metric."""
    rates = conclusions.learning_rates
    if rates.empty:
        return []
    lines = ["Best by rank and rate (means over seeds):"]
    for (model, task), own in rates.groupby(["model", "task"], sort=True):
        own = own.assign(
            series=[_series(m, s) for m, s in zip(own["method"], own["scaling"], strict=True)]
        )
        sign = sign_of(own)
        top = own.iloc[int((sign * own["value"].astype(float)).argmax())]
        metric = f"{top['metric']}{' (lower is better)' * bool((sign < 0).any())}"
        name = top["series"] + ("" if pd.isna(top["rank"]) else f", r = {int(top['rank'])}")
        lines.append(
            f"    {model}, {task}: {metric} {_value(top)} by {name} at "
            f"{top['learning_rate']:g}, {counted(int(top['seeds']), 'seed')}"
        )
        for series, part in own.groupby("series", sort=True):
            lines.append(f"        {series}: {'; '.join(map(_one, part.to_dict('records')))}")
    if rates["edge"].isin(["smallest tried", "largest tried"]).any():
        lines.append(f"    {EDGE} at the edge of the rates tried: a better one may lie outside")
    return [*lines, ""]


def _one(row: Mapping[Hashable, Any]) -> str:
    rank = "" if pd.isna(row["rank"]) else f"r = {int(row['rank'])} "
    edge = EDGE if row["edge"] in ("smallest tried", "largest tried") else ""
    return f"{rank}{_value(row)} at {row['learning_rate']:g}{edge}"


def _series(method: str, scaling: Any) -> str:
    if method == "full":
        return "full fine-tuning"
    return "LoRA" if pd.isna(scaling) else f"LoRA, {scaling}"


def _value(row: Mapping[Hashable, Any] | pd.Series) -> str:
    return f"{row['value']:z.3f}"


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
    """The best configuration of one task and method, at its chosen rate, in words."""
    better = configurations["value"] * sign_of(configurations)
    best = configurations.iloc[int(better.argmax())]
    name = "full fine-tuning" if best["method"] == "full" else f"LoRA r = {best['rank']:.0f}"
    return f"{name} {best['metric']} {best['value']:z.3f} at {rate_name(best['learning_rate'])}"
