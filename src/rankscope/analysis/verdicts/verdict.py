"""An answer to a hypothesis: the word, the sentences, the numbers behind them, and what to keep in
mind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rankscope.analysis.inference import Interval

QUESTIONS = {
    "H1": "Does the stable rank of the update grow much more slowly than the nominal rank?",
    "H2": "Is there a drift of the stable rank past which validation performance is lost?",
    "H3": "Does the drift grow with training, and does validation worsen with it?",
    "H4": "Is LoRA further from full fine-tuning than full fine-tuning is from itself?",
    "H5": "Is LoRA's best learning rate the same at every rank?",
    "H6": "Is the drift of the stable rank the cause of the loss?",
}
ERROR_RATE = 0.05
MOST_NAMED = 3  # tasks in a headline


@dataclass(frozen=True)
class Verdict:
    """The answer to one hypothesis: ``verdict`` is "supported", "contradicted" or "undecided".

    The first of the ``sentences`` can be quoted alone: a caveat that changes its meaning stands in
    it.
    """

    hypothesis: str
    question: str
    verdict: str
    sentences: tuple[str, ...]
    numbers: dict[str, Any]
    caveats: tuple[str, ...] = ()


def answer(
    hypothesis: str, word: str, sentences: Iterable[str], numbers: dict[str, Any], *caveats: str
) -> Verdict:
    """A `Verdict` without its empty sentences and caveats."""
    spoken = tuple(sentence for sentence in sentences if sentence)
    return Verdict(
        hypothesis, QUESTIONS[hypothesis], word, spoken, numbers, tuple(c for c in caveats if c)
    )


def overall(words: Iterable[str]) -> str:
    """One word for several tasks: supported where half of them support and none
    contradicts; and the reverse."""
    found = list(words)
    for word, other in (("supported", "contradicted"), ("contradicted", "supported")):
        if found and 2 * found.count(word) >= len(found) and other not in found:
            return word
    return "undecided"


def entries(name: str, found: Interval) -> dict[str, Any]:
    """An interval as entries of a flat dictionary."""
    bounds = {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
    return bounds | {f"{name}_clusters": counted(found.clusters, found.cluster)}


def interval_of(row: Any, name: str, cluster: str = "seed", clusters: int = 0) -> Interval:
    """The interval in the columns ``name``, ``name_low``, ``name_high`` of a table's row."""
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], cluster, clusters)


def where(row: Any, several_models: bool) -> str:
    """How a model and task are called: by the task, and by the model if there are several. A
    setting stands in the model's name (`rankscope.analysis.settings`)."""
    if not several_models:
        return str(row["task"])
    model, _, setting = str(row["model"]).partition(" (")
    return f"{row['task']} ({model}{', ' if setting else ''}{setting.removesuffix(')')})"


def named(names: Iterable[str]) -> str:
    """a; a and b; a, b and c."""
    found = list(dict.fromkeys(names))
    return " and ".join(filter(None, [", ".join(found[:-1]), found[-1]])) if found else ""


def sentence(parts: Iterable[str], end: str = "") -> str:
    """Parts joined by semicolons, with a capital and a stop; `end` stands before the stop."""
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}{end}."


def counted(count: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def about_seeds(found: Interval) -> str:
    """What an interval that does not resample seeds is silent about."""
    if found.cluster == "seed" or not found.known:
        return ""
    return (
        "There is only one seed, so the interval resamples the "
        f"{counted(found.clusters, found.cluster)} of this "
        "study and does not speak for new seeds."
    )


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
