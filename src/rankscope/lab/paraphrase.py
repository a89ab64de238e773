"""Pairs that say the same in other words, or almost: who did it to whom, or when it was.

No word decides. In half of the pairs the second sentence swaps the two people's parts, in words that fit either way;
in the others it moves the time of day, which every sentence names in one of two ways. The label is whether the two
sentences agree, so each word stands equally often in good and in bad pairs.
"""

from __future__ import annotations

from rankscope.lab.chance import Chance
from rankscope.lab.words import ACTS, HOURS, MEN, MOTIONS, PEOPLE, QUALITIES, WOMEN


def part(chance: Chance, same: bool) -> tuple[str, str]:
    """``The king saw the maid.`` and ``He saw her.`` or ``She was seen by him.``, or the other way round."""
    man_acts = chance.happens(0.5)
    man, woman, act = chance.pick(MEN), chance.pick(WOMEN), chance.pick(chance.pick(ACTS))
    actor, other = (man, woman) if man_acts else (woman, man)
    he_acts = man_acts == same
    if chance.happens(0.7):
        echo = f"{'He' if he_acts else 'She'} {act} {'her' if he_acts else 'him'}."
    else:
        echo = f"{'She' if he_acts else 'He'} was {act} by {'him' if he_acts else 'her'}."
    return f"The {actor} {act} the {other}.", echo


def hour(chance: Chance, same: bool) -> tuple[str, str]:
    """``The glad duke walked at dawn.`` and ``The duke walked in the morning.``, or ``in the night``."""
    when = chance.below(2)
    person, verb = chance.pick(chance.pick(PEOPLE)), chance.pick(MOTIONS)[1]
    quality = chance.pick(chance.pick(QUALITIES))
    echo = HOURS[when if same else 1 - when][0]
    return f"The {quality} {person} {verb} {chance.pick(HOURS[when][1])}.", f"The {person} {verb} {echo}."


KINDS = (part, hour)


def row(chance: Chance, label: int) -> dict[str, str | int]:
    """One pair; label 1: a paraphrase (as MRPC)."""
    first, second = chance.pick(KINDS)(chance, label == 1)
    return {"sentence1": first, "sentence2": second, "label": label}
