"""Several studies side by side on one page: what was studied, each verdict with its sentence and
picture, and a table of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rankscope import __version__
from rankscope.analysis.conclusions import Conclusions, conclude
from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import end, without_minus_zero
from rankscope.report.from_store import opened, page_at
from rankscope.report.opening import Opening, opening, today
from rankscope.report.page import environment
from rankscope.report.table import NOTHING, unknown
from rankscope.store.files import write_whole

# hypothesis -> (key of its interval, words, format), of the study and of each of its groups
OVERALL = {"H1": [("ratio", "sr at the largest over the smallest rank", ".2f"), ("b", "b", ".2f")]}
GROUPS = {
    "H2": (
        "thresholds",
        [
            ("half_ratio", "half of the gain lost at, of sr(W)", ".0%"),
            ("loss", "loss with drift", ".3f"),
            ("premise", "gain near sr(W) over the best gain", ".0%"),
        ],
    ),
    "H3": ("tasks", [("metric_after", "metric per e-fold of drift past the knot", "+.3f")]),
    "H4": ("contrasts", [("contrast", "cosine with full, less full with full", "+.3f")]),
    "H5": (
        "groups",
        [
            ("exponent", "exponent of the best rate", "+.2f"),
            ("to_full", "LoRA's best rate over full's", ".1f"),
        ],
    ),
    "H6": (
        "interventions",
        [
            ("regain_own", "regained with sr(W) restored", "+.3f"),
            ("loss_own", "lost when scaled to the same drift", "+.3f"),
        ],
    ),
}
Numbers = dict[tuple[str, str, str], str]  # (hypothesis, words, group) -> value with its interval


def write_comparison(
    stores: Sequence[str | Path],
    output: str | Path = "comparison.html",
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> Path:
    """One self-contained page with a column for each of `stores` (stores, or folders ``data``
    beside reports). -> the page. ``progress`` adds up to the number of stores."""
    page = page_at(output)
    studies = []
    for store in stores:
        found, said, _ = opened(store)
        studies.append((found, conclude(found, progress=progress), said))
    write_whole(page, render(studies))
    return page


def render(studies: Sequence[tuple[Frames, Conclusions, dict[str, Any]]]) -> str:
    """The page as text; each study with its frames, conclusions, ``study_text`` and
    ``provenance``."""
    shown: list[Opening] = [
        opening(frames, conclusions, study_text=said["study_text"], provenance=said["provenance"])
        for frames, conclusions, said in studies
    ]
    named = [dict(numbers(conclusions)) for _, conclusions, _ in studies]
    keys = list(dict.fromkeys(key for one in named for key in one))
    keys.sort(key=lambda key: key[0])
    hypotheses = sorted({v.hypothesis for one in shown for v, _ in one.answers})
    answers = {
        name: [
            next((found for found in one.answers if found[0].hypothesis == name), None)
            for one in shown
        ]
        for name in hypotheses
    }
    return (
        environment()
        .get_template("comparison.html.jinja")
        .render(
            studies=shown,
            answers=answers,
            rows=[(key, [one.get(key, NOTHING) for one in named]) for key in keys],
            date=today(),
            version=__version__,
        )
    )


def numbers(conclusions: Conclusions) -> Iterator[tuple[tuple[str, str, str], str]]:
    """The numbers that verdicts rest on: ((hypothesis, words, group), value with its interval)."""
    for verdict in conclusions.verdicts:
        for key, words, form in OVERALL.get(verdict.hypothesis, []):
            yield (verdict.hypothesis, words, ""), _interval(verdict.numbers, key, form)
        name, wanted = GROUPS.get(verdict.hypothesis, ("", []))
        for group in verdict.numbers.get(name, []):
            where = ", ".join(_part(group, part) for part in ("model", "task", "scaling", "rank"))
            where = ", ".join(part for part in where.split(", ") if part)
            for key, words, form in wanted:
                shown = _interval(group, key, form)
                hidden = key == "half_ratio" and group["answer"] != "supported"
                if shown != NOTHING and not hidden:  # a dose only where it is shown
                    yield (verdict.hypothesis, words, where), shown


def _part(group: dict[str, Any], part: str) -> str:
    value = group.get(part)
    if unknown(value):
        return ""
    return f"r = {value:g}" if part == "rank" else str(value)


def _interval(group: dict[str, Any], key: str, form: str) -> str:
    """0.91 [0.85, 0.97]; a dash where the value is unknown, or is no number."""
    low, high = (f"{key}_low", f"{key}_high") if key != "contrast" else ("low", "high")
    value, *ends = (group.get(name) for name in (key, low, high))
    if unknown(value):
        return NOTHING
    texts = [format(float(value or 0), without_minus_zero(form))]
    texts += [NOTHING if unknown(one) else end(float(one or 0), form) for one in ends]
    mid, *shown = (text.replace("-", "−") for text in texts)
    return mid if set(shown) == {NOTHING} else f"{mid} [{', '.join(shown)}]"
