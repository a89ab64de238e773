"""What the estimates say about H5."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankscope.analysis.inference import holm
from rankscope.analysis.rates import FEWEST_RESIDUALS, SHAPE, Rates
from rankscope.analysis.verdicts.verdict import (
    ERROR_RATE,
    MOST_NAMED,
    Verdict,
    answer,
    counted,
    interval_of,
    records,
    where,
)

# an exponent this small moves the best rate by less than sqrt(2) where the rank grows fourfold
SAME = 0.25
PUBLISHED = (
    "Published: LoRA's best rate is about 10 times that of full fine-tuning, 15 times in short "
    "runs (LoRA Without "
    "Regret, 2025), 3 times by a reproducer; rank-invariant or about 1/r by the scaling rule "
    "(arXiv 2602.06204)."
)


def rates_verdict(found: Rates) -> Verdict:
    """Supported: the interval of every group's exponent lies inside ±0.25. Contradicted: an
    exponent lies outside, by Holm's method over the groups."""
    rows = records(found.groups)
    numbers: dict[str, Any] = {"groups": rows, "configurations": records(found.configurations)}
    if not rows:
        return answer("H5", "undecided", ["No LoRA configuration learnt anything."], numbers)
    known = [row for row in rows if np.isfinite(row["exponent_low"])]
    outside = holm(np.array([_outside(row) for row in known], dtype=float))
    for row in rows:
        row["exponent_p_holm"] = np.nan
    for row, p in zip(known, outside, strict=True):
        row["exponent_p_holm"] = float(p)
    word = "undecided"
    if (outside <= ERROR_RATE).any():
        word = "contradicted"
    elif known and all(
        row["exponent_low"] > -SAME and row["exponent_high"] < SAME for row in known
    ):
        word = "supported"
    edges = found.configurations[found.configurations["edge"].ne("")]
    several = len({row["model"] for row in rows}) > 1
    named = ", ".join(
        f"{where(row, several)} {row['method']}"
        + (f" r = {row['rank']:.0f}" if row["method"] == "lora" else "")
        for row in records(edges)[:8]
    )
    edge = (
        f"At the edge of the grid, so left out: {named}{' and more' if len(edges) > 8 else ''}."
        if named
        else ""
    )
    sentences = [_headline(rows, known, several), *(_sentence(row, several) for row in rows)]
    few = found.configurations.loc[found.configurations["edge"].eq(""), "rates"]
    grid = (
        f"A best rate that stands on fewer than {FEWEST_RESIDUALS} rates is known to {SHAPE} steps "
        "of the grid (a standard error); intervals include it."
        if few.lt(FEWEST_RESIDUALS).any()
        else ""
    )
    return answer("H5", word, sentences, numbers, edge, grid, PUBLISHED)


def _outside(row: dict[str, Any]) -> float:
    """The p-value of an exponent inside ±0.25, from the same t as its interval."""
    found = interval_of(row, "exponent", clusters=row["exponent_seeds"])
    if abs(found.estimate) <= SAME:
        return 1.0
    return found.p(SAME if found.estimate > 0 else -SAME)


def _headline(rows: list[dict[str, Any]], known: list[dict[str, Any]], several: bool) -> str:
    """The groups that have an interval; how many have none is said, and their numbers follow."""
    there = [row for row in rows if np.isfinite(row["exponent"])]
    if not there:
        return "No group has two ranks whose best rate lies inside the grid."
    shown = known or there
    told = []
    for row in shown[:MOST_NAMED]:
        inner = f"{where(row, several).removesuffix(')')}, " if several else f"{row['task']} ("
        told.append(f"{_exponent(row, known)} on {inner}{row['scaling']})")
    more = f" and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else ""
    silent = len(there) - len(known)
    ending = "with one seed there is no interval"
    if known:
        ending = f"{counted(silent, 'group')} of one seed without an interval" if silent else ""
    return (
        f"LoRA's best learning rate goes with the rank as r^b, b = {', '.join(told)}{more}"
        f"{'; ' if ending else ''}{ending}."
    )


def _exponent(row: dict[str, Any], known: list[dict[str, Any]]) -> str:
    if known:
        return f"{interval_of(row, 'exponent')}"
    return f"{row['exponent']:z.2f}".replace("-", "−")


def _sentence(row: dict[str, Any], several: bool) -> str:
    place = f"{where(row, several)}, {row['scaling']}"
    if not row["ranks"]:
        return f"{place}: every best rate lies at the edge of the grid or has no neighbours."
    place = f"{place} (r = {row['ranks']})"
    exponent = interval_of(row, "exponent", clusters=row["exponent_seeds"])
    known = np.isfinite(exponent.estimate)
    text = f"{place}: exponent {exponent}" if known else f"{place}: one rank"
    if exponent.known and _outside(row) <= ERROR_RATE < row["exponent_p_holm"]:
        text += f" (outside ±{SAME}, but not shown among so many groups: Holm's p is "
        text += f"{row['exponent_p_holm']:.2f})"
    if np.isfinite(row["to_full"]):
        times = interval_of(row, "to_full", clusters=row["to_full_seeds"])
        return f"{text}, {times:.1f} times the best rate of full fine-tuning."
    why = row["full_edge"] or "no common seed"
    return f"{text}; not set beside full fine-tuning ({why})."
