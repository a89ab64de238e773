"""The words that the generated tasks are made of, and how they are drawn.

Plain English of the nineteenth century; most words are one token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

# Each row is one meaning.
PEOPLE = (
    ("boy", "lad"),
    ("girl", "maid"),
    ("lady", "woman"),
    ("man", "fellow"),
    ("friend", "companion"),
    ("captain", "chief"),
    ("ghost", "spirit"),
    ("servant", "steward"),
    ("guard", "warden"),
    ("duke", "lord"),
    ("beast", "animal"),
    ("judge", "master"),
)
QUALITIES = (
    ("happy", "glad"),
    ("tired", "weary"),
    ("strange", "queer"),
    ("little", "small"),
    ("silent", "quiet"),
    ("evil", "wicked"),
    ("strong", "mighty"),
    ("gentle", "kind"),
    ("great", "grand"),
    ("angry", "furious"),
)


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
WOMEN = ("girl", "lady", "queen", "sister", "daughter", "mother", "wife", "woman", "maid", "aunt")
MEN = ("boy", "king", "brother", "father", "son", "man", "husband", "lad", "captain", "uncle")
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
# A time of day, and other ways to name it.
HOURS = (
    ("in the morning", ("at sunrise", "before breakfast", "at dawn", "early")),
    ("in the night", ("at midnight", "in the dark", "after sunset", "when all slept")),
)
# Of each pair one holds and the other does not.
OPPOSITES = (
    ("alive", "dead"),
    ("asleep", "awake"),
    ("present", "absent"),
    ("sick", "well"),
    ("wet", "dry"),
)


T = TypeVar("T")


class StableRandom:
    """Draws from a text seed, such as ``"0 paraphrase"``."""

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
