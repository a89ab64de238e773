"""Pairs where the second sentence follows from the first (label 0), or does not (1): who is meant, and is it denied?

No word decides: the label is whether the two sentences agree, in the sex of the person or in the polarity of the
statement, and each of the words that carry these stands equally often under both labels.
"""

from __future__ import annotations

from rankscope.lab.chance import Chance
from rankscope.lab.words import MEN, MOTIONS, PEOPLE, PLACES, POLARITIES, QUALITIES, WOMEN


def person(chance: Chance, follows: bool) -> tuple[str, str]:
    """``The weary queen ran in the wood.`` and ``She ran there.``, or ``He``."""
    woman = chance.happens(0.5)
    noun, verb = chance.pick(WOMEN if woman else MEN), chance.pick(MOTIONS)[1]
    quality, place = chance.pick(chance.pick(QUALITIES)), chance.pick(chance.pick(PLACES))
    pronoun = "She" if woman == follows else "He"
    return f"The {quality} {noun} {verb} in the {place}.", f"{pronoun} {verb} there."


def polarity(chance: Chance, follows: bool) -> tuple[str, str]:
    """``The maid was never glad in the town.`` and ``The maid was not glad.``, or ``really``."""
    kind = chance.below(2)
    noun, quality = chance.pick(chance.pick(PEOPLE)), chance.pick(chance.pick(QUALITIES))
    place = chance.pick(chance.pick(PLACES))
    echo = POLARITIES[kind if follows else 1 - kind]
    return (
        f"The {noun} was {chance.pick(POLARITIES[kind])} {quality} in the {place}.",
        f"The {noun} was {chance.pick(echo)} {quality}.",
    )


KINDS = (person, polarity)


def row(chance: Chance, label: int) -> dict[str, str | int]:
    """One pair; label 0: entailment, 1: not entailment (as RTE)."""
    first, second = chance.pick(KINDS)(chance, label == 0)
    return {"sentence1": first, "sentence2": second, "label": label}
