"""Pairs that say the same in other words, or almost: when was it?

No word decides. Both sentences name a time of day, in different words, and the label is whether
they mean the same one; each way to name a time stands equally often under both labels.
"""

from __future__ import annotations

from rankscope.lab.stable_random import StableRandom
from rankscope.lab.words import HOURS, MOTIONS, PEOPLE, QUALITIES


def row(random: StableRandom, label: int) -> dict[str, str | int]:
    """One pair; label 1: a paraphrase (as MRPC).

    ``The weary duke walked at dawn.`` and ``The duke walked in the morning.``, or ``in the night``.
    """
    when = random.below(2)
    quality, person = random.pick(random.pick(QUALITIES)), random.pick(random.pick(PEOPLE))
    verb = random.pick(MOTIONS)[1]
    echo = HOURS[when if label else 1 - when][0]
    return {
        "sentence1": f"The {quality} {person} {verb} {random.pick(HOURS[when][1])}.",
        "sentence2": f"The {person} {verb} {echo}.",
        "label": label,
    }
