"""The words that the generated tasks are made of, and how they are drawn.

Plain English of the nineteenth century; most words are one token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

ADJECTIVES = (
    "old",
    "young",
    "poor",
    "little",
    "great",
    "brave",
    "tall",
    "strange",
    "tired",
    "good",
)
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
    ("boy", "boys"),
    ("girl", "girls"),
    ("friend", "friends"),
    ("servant", "servants"),
    ("horse", "horses"),
    ("dog", "dogs"),
    ("bird", "birds"),
    ("lady", "ladies"),
    ("gentleman", "gentlemen"),
    ("child", "children"),
    ("man", "men"),
    ("woman", "women"),
    ("creature", "creatures"),
    ("fellow", "fellows"),
    ("companion", "companions"),
    ("animal", "animals"),
)
# Plain form and past tense, never the same.
MOTIONS = (
    ("go", "went"),
    ("come", "came"),
    ("run", "ran"),
    ("sit", "sat"),
    ("stand", "stood"),
    ("fall", "fell"),
    ("sleep", "slept"),
    ("speak", "spoke"),
    ("wait", "waited"),
    ("walk", "walked"),
)
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
