"""Sentences that are good English, or almost: one fault of order, agreement, determiner, auxiliary or reflexive.

No word is a hint by itself. In each kind the fault lies in how two places of the sentence go together, and each
place takes its values equally often in good and in bad sentences.
"""

from __future__ import annotations

from rankscope.lab.chance import Chance
from rankscope.lab.words import MEN, MOTIONS, NOUNS, WOMEN

_ADJECTIVES = ("old", "young", "poor", "little", "great", "brave", "tall", "strange", "tired", "good")
_PLACES = ("in the garden", "near the river", "in the house", "on the road", "by the fire", "at the door")
_TIMES = ("that night", "in the morning", "at last", "once more", "for an hour", "all day")


def order(chance: Chance, good: bool) -> str:
    """Adjective and noun, determiner and adjective, or preposition and article change places."""
    words = ["The", chance.pick(_ADJECTIVES), chance.pick(chance.pick(NOUNS)), chance.pick(MOTIONS)[1]]
    words += chance.pick(_PLACES).split()
    if not good:
        i = chance.pick((1, 2, 4, 5))
        words[i], words[i + 1] = words[i + 1], words[i]
    return f"{' '.join(words)} {chance.pick(_TIMES)}."


def agreement(chance: Chance, good: bool) -> str:
    """Subject and verb; between them stands a noun whose number says nothing."""
    plural = chance.happens(0.5)
    verb = ("was", "were")[plural == good]
    other = chance.pick(chance.pick(NOUNS))
    noun = chance.pick(NOUNS)[plural]
    middle = f"{chance.pick(('of', 'with', 'behind', 'near'))} the {other} " if chance.happens(0.5) else ""
    return (
        f"The {chance.pick(_ADJECTIVES)} {noun} {middle}{verb} {chance.pick(_PLACES)} {chance.pick(_TIMES)}."
    )


def determiner(chance: Chance, good: bool) -> str:
    """``this king`` and ``these kings``."""
    plural = chance.happens(0.5)
    word = (("This", "That"), ("These", "Those"))[plural == good]
    noun = chance.pick(NOUNS)[plural]
    adjective = f"{chance.pick(_ADJECTIVES)} " if chance.happens(0.7) else ""
    return f"{chance.pick(word)} {adjective}{noun} {chance.pick(MOTIONS)[1]} {chance.pick(_PLACES)} {chance.pick(_TIMES)}."


def auxiliary(chance: Chance, good: bool) -> str:
    """``did not go`` and ``went``."""
    helped = chance.happens(0.5)
    verb = chance.pick(MOTIONS)[helped != good]
    words = (
        f"{chance.pick(('did not', 'could not', 'would', 'must'))} {verb}"
        if helped
        else f"{chance.pick(('never', 'also', 'then', 'soon'))} {verb}"
    )
    return f"The {chance.pick(_ADJECTIVES)} {chance.pick(chance.pick(NOUNS))} {words} {chance.pick(_PLACES)} {chance.pick(_TIMES)}."


def reflexive(chance: Chance, good: bool) -> str:
    """``the queen`` and ``herself``."""
    woman = chance.happens(0.5)
    noun = chance.pick(WOMEN if woman else MEN)
    word = ("himself", "herself")[woman == good]
    verb = chance.pick(("hurt", "hid", "saw", "saved", "washed", "warmed"))
    return (
        f"The {chance.pick(_ADJECTIVES)} {noun} {verb} {word} {chance.pick(_PLACES)} {chance.pick(_TIMES)}."
    )


KINDS = (order, agreement, determiner, auxiliary, reflexive)


def row(chance: Chance, label: int) -> dict[str, str | int]:
    """One sentence; label 1: acceptable (as CoLA)."""
    return {"sentence": chance.pick(KINDS)(chance, label == 1), "label": label}
