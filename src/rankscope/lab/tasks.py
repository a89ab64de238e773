"""The three generated tasks, with GLUE's column names: ``rows(task, split)`` and ``write(folder)``.

    acceptability   sentence, label                 1 acceptable
    agreement       sentence, label                 1 subject and verb agree
    reference       sentence1, sentence2, label     1 pronoun and noun agree

No single word gives the label away: it depends on how two places agree, and each place takes each
of its values equally often under both labels. The rows depend on the seed alone: not on the
platform, the Python version or the hash seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from rankscope.lab import TASKS

SIZES = {"train": 2000, "validation": 500}
Row = dict[str, str | int]

# Plain English of the nineteenth century; most words are one token.
ADJECTIVES = (
    "old", "young", "poor", "little", "great", "brave", "tall", "strange", "tired", "good",
)  # fmt: skip
PLACES = (
    "in the garden",
    "near the river",
    "in the house",
    "on the road",
    "by the fire",
    "at the door",
)
TIMES = ("that night", "in the morning", "at last", "once more", "for an hour", "all day")
# Singular and plural.
NOUNS = (
    ("boy", "boys"), ("girl", "girls"), ("friend", "friends"), ("servant", "servants"),
    ("horse", "horses"), ("dog", "dogs"), ("bird", "birds"), ("lady", "ladies"),
    ("gentleman", "gentlemen"), ("child", "children"), ("man", "men"), ("woman", "women"),
    ("creature", "creatures"), ("fellow", "fellows"), ("companion", "companions"),
    ("animal", "animals"),
)  # fmt: skip
# Plain form and past tense, never the same.
MOTIONS = (
    ("go", "went"), ("come", "came"), ("run", "ran"), ("sit", "sat"), ("stand", "stood"),
    ("fall", "fell"), ("sleep", "slept"), ("speak", "spoke"), ("wait", "waited"),
    ("walk", "walked"),
)  # fmt: skip
# Of each pair the first is singular, the second plural.
PRONOUNS = (("He", "They"), ("She", "We"), ("It", "You"))
VERBS = (("was", "were"), ("has been", "have been"), ("is", "are"))
DETERMINERS = (("This", "These"), ("That", "Those"))


T = TypeVar("T")


class StableRandom:
    """Draws from a text seed, such as ``"0 agreement"``."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def happens(self, probability: float) -> bool:
        return self._random() < probability

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def several(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items, in the order drawn."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def word_order(random: StableRandom, good: bool) -> str:
    """Adjective and noun, determiner and adjective, or preposition and article change places."""
    words = [
        "The",
        random.pick(ADJECTIVES),
        random.pick(random.pick(NOUNS)),
        random.pick(MOTIONS)[1],
    ]
    words += random.pick(PLACES).split()
    if not good:
        i = random.pick((1, 2, 4, 5))
        words[i], words[i + 1] = words[i + 1], words[i]
    return f"{' '.join(words)} {random.pick(TIMES)}."


def auxiliary(random: StableRandom, good: bool) -> str:
    """``did not go`` and ``went``."""
    helped = random.happens(0.5)
    verb = random.pick(MOTIONS)[helped != good]
    words = (
        f"{random.pick(('did not', 'could not', 'would', 'must'))} {verb}"
        if helped
        else f"{random.pick(('never', 'also', 'then', 'soon'))} {verb}"
    )
    return (
        f"The {random.pick(ADJECTIVES)} {random.pick(random.pick(NOUNS))} {words} "
        f"{random.pick(PLACES)} {random.pick(TIMES)}."
    )


def acceptability(random: StableRandom, label: int) -> Row:
    """A good sentence (label 1, as CoLA), or one with a fault of word order or of a verb's form."""
    return {"sentence": random.pick((word_order, auxiliary))(random, label == 1), "label": label}


def agreement(random: StableRandom, label: int) -> Row:
    """Whether subject and verb agree in number (label 1).

    ``They were tired by the fire at last.``, or ``was``.
    """
    plural = random.below(2)
    verb = random.pick(VERBS)[plural if label else 1 - plural]
    rest = f"{random.pick(ADJECTIVES)} {random.pick(PLACES)} {random.pick(TIMES)}"
    return {"sentence": f"{random.pick(PRONOUNS)[plural]} {verb} {rest}.", "label": label}


def reference(random: StableRandom, label: int) -> Row:
    """Whether the second sentence's pronoun has the number of the first one's subject (label 1).

    ``These dogs ran.`` and ``They were tired.``, or ``It was tired.``
    """
    plural = random.below(2)
    subject = f"{random.pick(DETERMINERS)[plural]} {random.pick(NOUNS)[plural]}"
    pronoun = ("It was", "They were")[plural if label else 1 - plural]
    return {
        "sentence1": f"{subject} {random.pick(MOTIONS)[1]}.",
        "sentence2": f"{pronoun} {random.pick(ADJECTIVES)}.",
        "label": label,
    }


_GRAMMARS = {"acceptability": acceptability, "agreement": agreement, "reference": reference}


@lru_cache(maxsize=8)
def _splits(task: str, seed: int) -> dict[str, list[Row]]:
    """All splits of a task: no text twice, labels in equal parts, order shuffled."""
    if task not in _GRAMMARS:
        raise ValueError(f'task: expected one of {", ".join(TASKS)}; got "{task}".')
    random = StableRandom(f"{seed} {task}")
    seen: dict[tuple[str | int, ...], None] = {}
    splits: dict[str, list[Row]] = {}
    for split, size in SIZES.items():
        rows: list[Row] = []
        while len(rows) < size:
            row = _GRAMMARS[task](random, len(rows) % 2)
            texts = tuple(value for column, value in row.items() if column != "label")
            if texts not in seen:
                seen[texts] = None
                rows.append(row)
        splits[split] = random.several(rows, size)
    return splits


def rows(task: str, split: str, seed: int = 0) -> list[Row]:
    """2,000 rows of split "train" or 500 of "validation", half of each label.
    ``ValueError`` for other names."""
    splits = _splits(task, seed)
    if split not in splits:
        raise ValueError(f'split: expected one of {", ".join(SIZES)}; got "{split}".')
    return [dict(row) for row in splits[split]]


def write(folder: str | Path, seed: int = 0) -> None:
    """Writes ``<folder>/<task>/{train,validation}.tsv``: tab separated, one header line, no
    quoting, UTF-8."""
    for task in TASKS:
        for split in SIZES:
            table = rows(task, split, seed)
            lines = ["\t".join(table[0]), *("\t".join(map(str, row.values())) for row in table)]
            path = Path(folder) / task / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
