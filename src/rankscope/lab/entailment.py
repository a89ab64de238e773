"""Pairs where the second sentence follows from the first (label 0), or is contradicted by it (1).

No word decides: the second sentence repeats the first one's state or names its opposite, and both
words of each pair of opposites stand equally often on either side under both labels.
"""

from __future__ import annotations

from rankscope.lab.stable_random import StableRandom
from rankscope.lab.words import HOURS, OPPOSITES, PEOPLE, QUALITIES

_TIMES = tuple(time for _, times in HOURS for time in times)


def row(random: StableRandom, label: int) -> dict[str, str | int]:
    """One pair; label 0: entailment, 1: not entailment (as RTE).

    ``The weary duke was awake at dawn.`` and ``The duke was awake.``, or ``asleep``.
    """
    states, k = random.pick(OPPOSITES), random.below(2)
    quality, person = random.pick(random.pick(QUALITIES)), random.pick(random.pick(PEOPLE))
    return {
        "sentence1": f"The {quality} {person} was {states[k]} {random.pick(_TIMES)}.",
        "sentence2": f"The {person} was {states[1 - k if label else k]}.",
        "label": label,
    }
