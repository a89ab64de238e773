"""What ``rankscope analyze`` says first: the best metric of each rank, and its rate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.direction import sign_of

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
            f"{top['learning_rate']:g}, {_seeds(int(top['seeds']))}"
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
    return f"{row['value']:.3f}"


def _seeds(count: int) -> str:
    return f"{count} seed" + "s" * (count != 1)
