"""An answer to a hypothesis: the word, the sentences, the numbers behind them, and what to keep in mind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankscope.analysis.bootstrap import Interval

QUESTIONS = {
    "H1": "Does the stable rank of the update grow much more slowly than the nominal rank?",
    "H2": "Is there a drift of the stable rank past which validation performance declines?",
    "H3": "Does the drift grow with training, and does validation fall with it?",
    "H4": "Does LoRA at high rank stay away from the update that full fine-tuning learns?",
}


@dataclass(frozen=True)
class Verdict:
    """The answer to one hypothesis: ``verdict`` is "supported", "contradicted" or "undecided"."""

    hypothesis: str
    question: str
    verdict: str
    sentences: tuple[str, ...]
    numbers: dict[str, Any]
    caveats: tuple[str, ...] = ()


def answer(
    hypothesis: str, word: str, sentences: list[str], numbers: dict[str, Any], *caveats: str
) -> Verdict:
    """A `Verdict` without its empty sentences and caveats."""
    spoken = tuple(sentence for sentence in sentences if sentence)
    return Verdict(hypothesis, QUESTIONS[hypothesis], word, spoken, numbers, tuple(c for c in caveats if c))


def entries(name: str, found: Interval) -> dict[str, Any]:
    """An interval as entries of a flat dictionary."""
    bounds = {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
    return bounds | {f"{name}_clusters": counted(found.clusters, found.cluster)}


def counted(count: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def about_seeds(found: Interval) -> str:
    """What an interval that does not resample seeds is silent about."""
    if found.cluster == "seed" or not found.known:
        return ""
    return (
        "There is only one seed, so the interval resamples the "
        f"{counted(found.clusters, found.cluster)} "
        "of this study and does not speak for new seeds."
    )
