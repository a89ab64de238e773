"""What is claimed about the complexity of updates, and what our studies found: a table.

    python tools/claims.py > docs/results/claims.md

Rows are claims: H1 to H6, and numbers that others have published. Columns are the studies of
docs/results that have conclusions. Every cell is read from a study's conclusions.json; a study that
does not bear on a claim has an empty cell. tests/test_results.py holds the page to this script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rankscope.analysis.inference import end

RESULTS = Path(__file__).parents[1] / "docs" / "results"
STUDIES = {
    "minilm-glue": "all-MiniLM, GLUE",
    "minilm-balanced": "all-MiniLM, balanced",
    "interventions": "all-MiniLM, edited",
    "optimisers": "AdamW and Muon",
    "causal-lm": "small Llama",
}
Numbers = dict[str, Any]
HELD = 0.5  # share of values held at three deviations: beyond it a loss is a lower bound


def interval(numbers: Numbers, key: str, digits: int = 2, factor: float = 1.0) -> str:
    """`value [low, high]`; without an interval, the value and a word that says so."""
    value, low, high = (numbers.get(f"{key}{part}") for part in ("", "_low", "_high"))
    if value is None:
        return ""
    shown = f"{factor * value:z.{digits}f}".replace("-", "−")
    if low is None and high is None:
        return f"{shown} (no interval)"
    low, high = ("∞" if x is None else end(factor * x, f".{digits}f") for x in (low, high))
    return f"{shown} [{low}, {high}]".replace("-", "−")


def where(entry: Numbers, *, scaling: bool = False) -> str:
    """Task, setting and scale rule of an entry; a setting stands in brackets behind its model."""
    setting = re.search(r"\((.*)\)$", entry["model"])
    parts = [entry["task"], setting[1] if setting else "", entry["scaling"] if scaling else ""]
    return ", ".join(part for part in parts if part)


def each(numbers: Numbers, key: str, found: Callable[[Numbers], str]) -> Iterator[str]:
    """One line per task and setting."""
    for entry in numbers.get(key, []):
        if text := found(entry):
            yield f"{where(entry)}: {text}"


def growth(numbers: Numbers) -> Iterator[str]:
    for place, entry, ranks in designs(numbers):
        if text := interval(entry, "ratio"):
            yield f"{place}× {text} from r = {ranks[0]} to {ranks[-1]}"


def exponent(numbers: Numbers) -> Iterator[str]:
    for place, entry, _ in designs(numbers):
        if text := interval(entry, "b"):
            yield f"{place}{text}"


def designs(numbers: Numbers) -> Iterator[tuple[str, Numbers, list[str]]]:
    """The headline of H1, and beside it the groups of other settings, which it does not pool."""
    whole = [g for g in numbers["groups"] if g["kind"] == "all"]
    main = [g for g in whole if g["primary"]]
    others = [g for g in whole if main and g["model"] != main[0]["model"]]
    for entry, parts in [(numbers, main), *((g, [g]) for g in others)]:
        if parts:
            place = " and ".join(where(part) for part in parts) + ": " if others else ""
            yield place, entry, parts[0]["ranks"].split(", ")


def stable_ranks(numbers: Numbers) -> Iterator[str]:
    for c in numbers.get("contrasts", []):
        if c["highest"] and c["stable_lora"] and c["stable_full"]:
            place = f"{where(c, scaling=True)}, r = {c['rank']:.0f}"
            yield f"{place}: {c['stable_lora']:.2f}; full {c['stable_full']:.2f}"


def direction(numbers: Numbers) -> Iterator[str]:
    yield from each(numbers, "thresholds", lambda t: t.get("direction") or "")


def threshold(numbers: Numbers) -> Iterator[str]:
    def found(t: Numbers) -> str:
        place = interval(t, "half_ratio", 0, 100)
        if t["answer"] == "contradicted" or not place:
            return f"{t['answer']} ({t['reason']})"
        return f"{t['answer']}, {place} % of sr(W)"

    yield from each(numbers, "thresholds", found)


def loss(numbers: Numbers) -> Iterator[str]:
    def lost(t: Numbers) -> str:
        more = " or more" if (t.get("held") or 0) > HELD else ""
        return f"{interval(t, 'loss', 3)}{more} of {t['gain']:.3f}" if t.get("gain") else ""

    yield from each(numbers, "thresholds", lost)


def continued(numbers: Numbers) -> Iterator[str]:
    def found(t: Numbers) -> str:
        slope = interval(t, "metric_after", 3)
        return f"{slope} per e-fold" if slope else ""

    yield from each(numbers, "tasks", found)


def alignment(numbers: Numbers) -> Iterator[str]:
    for c in numbers.get("contrasts", []):
        if c["highest"] and c["contrast"] is not None:
            yield f"{where(c, scaling=True)}: " + interval(
                {"": c["contrast"], "_low": c["low"], "_high": c["high"]}, ""
            )


def rate_exponent(numbers: Numbers) -> Iterator[str]:
    for g in numbers.get("groups", []):
        if text := interval(g, "exponent"):
            yield f"{where(g, scaling=True)}: {text}"


def rate_ratio(numbers: Numbers) -> Iterator[str]:
    for g in numbers.get("groups", []):
        if text := interval(g, "to_full", 1):
            yield f"{where(g, scaling=True)}: {text}"


def cause(numbers: Numbers) -> Iterator[str]:
    for t in numbers.get("interventions", []):
        yield (
            f"{where(t)}: restoring regains {interval(t, 'regain_own', 3)}, scaling loses "
            f"{interval(t, 'loss_own', 3)}, of {t['gain']:.3f} ({t['short_own']} of {t['good']} "
            "do not reach the drift)"
        )


Row = tuple[str, str, Callable[[Numbers], Iterator[str]], bool]
# claim, hypothesis whose numbers are read, what is read of them, whether the verdict stands before
CLAIMS: tuple[Row, ...] = (
    ("H1: sr(ΔW) grows much more slowly than r", "H1", growth, True),
    (
        "sr(ΔW) grows as r^b, b from 0.23 to 0.30 (Yazidi 2026, three language models)",
        "H1",
        exponent,
        False,
    ),
    (
        "sr(ΔW) of LoRA 1.06, of PoLAR 5.49 (PoLAR's authors: Llama-2-7B, r = 32)",
        "H4",
        stable_ranks,
        False,
    ),
    ("H2: past a threshold s* of sr(W + ΔW) half of the gain is lost", "H2", threshold, True),
    ("what is lost far beyond it", "H2", loss, False),
    (
        "where training fails sr(W + ΔW) falls (MSign, arXiv 2602.01734) or rises "
        "(arXiv 2502.09376)",
        "H2",
        direction,
        False,
    ),
    (
        "H3: with more training drift grows, and the metric worsens past half of sr(W)",
        "H3",
        continued,
        True,
    ),
    (
        "H4: LoRA's update is further from full fine-tuning's than two of those are from each "
        "other (cosine, other seeds)",
        "H4",
        alignment,
        True,
    ),
    (
        "H5: LoRA's best rate goes as r^0, or as 1/r, by the scale rule (arXiv 2602.06204)",
        "H5",
        rate_exponent,
        True,
    ),
    (
        "LoRA's best rate is 10 times that of full fine-tuning, 15 times in short runs (LoRA "
        "Without Regret, 2025), 3 times by a reproducer",
        "H5",
        rate_ratio,
        False,
    ),
    ("H6: drift is the cause of the loss, not its marker", "H6", cause, True),
)


def cell(
    study: str, hypothesis: str, read: Callable[[Numbers], Iterator[str]], verdict: bool
) -> str:
    conclusions = json.loads((RESULTS / study / "conclusions.json").read_text(encoding="utf-8"))
    found = {v["hypothesis"]: v for v in conclusions["verdicts"]}.get(hypothesis)
    lines = list(read(found["numbers"])) if found else []
    if not lines:
        return ""
    said = [f"[{found['verdict']}]({study}/README.md)"] if found and verdict else []
    return "<br>".join(said + lines)


def page() -> str:
    """The page in Markdown."""
    head = " | ".join(f"[{title}]({study}/README.md)" for study, title in STUDIES.items())
    lines = [
        "# What is claimed, and what our studies found",
        "",
        "Each cell is read from the study's `conclusions.json` by `python tools/claims.py`. 95 %",
        "intervals in brackets; an empty cell: the study does not bear on the claim. What none of",
        "them can tell stands on [its own page](cannot-say.md).",
        "",
        f"| claim | {head} |",
        "| --- " * (len(STUDIES) + 1) + "|",
    ]
    for claim, *how in CLAIMS:
        cells = " | ".join(cell(study, *how) for study in STUDIES)
        lines.append(f"| {claim} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
