"""What the estimates say about H4."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankscope.analysis.alignment import Alignment
from rankscope.analysis.inference import Interval
from rankscope.analysis.verdicts.verdict import (
    MOST_NAMED,
    Verdict,
    answer,
    counted,
    interval_of,
    overall,
    records,
)

CLOSE = 0.05  # a difference of cosines that counts as none


def alignment_verdict(found: Alignment) -> Verdict:
    """At each task's and rule's highest rank, if it is at least half of the layers'
    dimension. Supported: the contrast cos(LoRA_s, FT_s') - cos(FT_s, FT_s') lies below -0.05, by
    more than what counts as none. Contradicted: it lies above -0.05.

    Over tasks and rules as in H2; nothing is pooled.
    """
    rows = records(found.contrasts)
    numbers: dict[str, Any] = {"contrasts": rows}
    if not rows:
        reason = (
            "LoRA and full fine-tuning were not compared; that needs both, learnt, for "
            "one model and task."
        )
        return answer("H4", "undecided", [reason], numbers)
    top = found.contrasts.groupby(["model", "task", "scaling"])["rank"].transform("max")
    for row, highest in zip(rows, top, strict=True):
        row["highest"] = row["rank"] == highest
        row["answer"] = _word(row)
    highest_rows = [row for row in rows if row["highest"]]
    high = [row for row in highest_rows if 2 * row["rank"] >= row["dimension"]]
    known = [row for row in high if np.isfinite(row["contrast"])]
    sentences = [_headline(high, known), *map(_sentence, highest_rows)]
    partial = any(row["rank"] < row["dimension"] for row in high)
    return answer(
        "H4",
        overall(row["answer"] for row in known),
        sentences,
        numbers,
        "In some groups the highest rank compared is below the layers' dimension."
        if partial
        else "",
        "A cosine compares directions only: norms and stable ranks differ as well (the table).",
    )


def _word(row: dict[str, Any]) -> str:
    if row["high"] < -CLOSE:
        return "supported"
    return "contradicted" if row["low"] > -CLOSE else "undecided"


def _headline(high: list[dict[str, Any]], known: list[dict[str, Any]]) -> str:
    if not high:
        return (
            "The ranks compared are below half of the layers' dimension, too low to speak "
            "about high ranks."
        )
    if not known and any(np.isfinite(row["lora_full"]) for row in high):
        return (
            "No two full fine-tunings of different seeds are at hand, so there is nothing to set "
            "LoRA's distance from one against: whether LoRA is further away is open."
        )
    if not known:
        return (
            "No pair of LoRA and full fine-tuning with different seeds is at hand, and pairs "
            "of one seed cannot be set "
            "against full fine-tunings of different seeds: whether LoRA is further away is open."
        )
    told = [f"{_contrast(row):+.2f} on {_place(row)}" for row in known[:MOST_NAMED]]
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    words = [row["answer"] for row in known]
    shown = (
        f"shown to be further in {words.count('supported')} of {counted(len(words), 'comparison')}"
    )
    return (
        "LoRA's cosine with full fine-tunings of other seeds, less that of two full ones, is "
        f"{', '.join(told)}{more}; {shown}."
    )


def _contrast(row: dict[str, Any]) -> Interval:
    return Interval(row["contrast"], row["low"], row["high"], "seed", row["seeds"])


def _place(row: dict[str, Any]) -> str:
    return f"{row['task']} (r = {row['rank']:.0f}, {row['scaling']})"


def _sentence(row: dict[str, Any]) -> str:
    parts = []
    if np.isfinite(row["contrast"]):
        parts.append(
            f"different seeds: LoRA and full {row['lora_full']:z.2f}, two full "
            f"{row['full_full']:z.2f}"
        )
        if np.isfinite(row["lora_lora"]):
            parts.append(f"two LoRA {row['lora_lora']:z.2f}")
        parts.append(f"difference {_contrast(row)}{_near(row)}")
    elif np.isfinite(row["full_full"]):
        parts.append(f"two full fine-tunings of different seeds {row['full_full']:z.2f}")
    if np.isfinite(row["same_seed"]):
        parts.append(f"LoRA and full of one seed {row['same_seed']:z.2f}")
    for name, words in (
        ("barrier", "loss barrier at the midpoint"),
        ("cka", "CKA of pooled features"),
    ):
        if np.isfinite(row[f"{name}_lora_full"]):
            parts.append(f"{words} {_halfway(row, name)}")
    if np.isfinite(row["stable_lora"]) and np.isfinite(row["stable_full"]):
        parts.append(f"stable ranks {row['stable_lora']:z.2f} and {row['stable_full']:z.2f}")
    return f"{_place(row)}: mean cosines, {', '.join(parts)}."


def _near(row: dict[str, Any]) -> str:
    """Said where LoRA is shown to be further, but not by more than what counts as none."""
    if not -CLOSE <= row["high"] < 0:
        return ""
    if row["low"] > -CLOSE:
        return f" (further, by less than {CLOSE}, which counts as none)"
    return f" (further, but not shown to be by {CLOSE}; less counts as none)"


def _halfway(row: dict[str, Any], name: str) -> str:
    """LoRA and full beside two full, pairs of different seeds."""
    beside = f"{interval_of(row, f'{name}_lora_full', clusters=row['seeds']):.3f}"
    if not np.isfinite(row[f"{name}_contrast"]):
        return beside
    found = interval_of(row, f"{name}_contrast", clusters=row["seeds"])
    full = f"{row[f'{name}_full_full']:z.3f}".replace("-", "−")
    return f"{beside} (two full {full}, difference {found:+.3f})"
