"""Sentences that are good English, or almost: one fault of order, agreement, determiner, auxiliary
or reflexive.

No word is a hint by itself. In each kind the fault lies in how two places of the sentence go
together, and each place takes its values equally often in good and in bad sentences.
"""

from __future__ import annotations

from rankscope.lab.words import MEN, MOTIONS, NOUNS, WOMEN, StableRandom

_ADJECTIVES = (
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
_PLACES = (
    "in the garden",
    "near the river",
    "in the house",
    "on the road",
    "by the fire",
    "at the door",
)
_TIMES = ("that night", "in the morning", "at last", "once more", "for an hour", "all day")


def order(random: StableRandom, good: bool) -> str:
    """Adjective and noun, determiner and adjective, or preposition and article change places."""
    words = [
        "The",
        random.pick(_ADJECTIVES),
        random.pick(random.pick(NOUNS)),
        random.pick(MOTIONS)[1],
    ]
    words += random.pick(_PLACES).split()
    if not good:
        i = random.pick((1, 2, 4, 5))
        words[i], words[i + 1] = words[i + 1], words[i]
    return f"{' '.join(words)} {random.pick(_TIMES)}."


def agreement(random: StableRandom, good: bool) -> str:
    """Subject and verb; between them stands a noun whose number says nothing."""
    plural = random.happens(0.5)
    verb = ("was", "were")[plural == good]
    other = random.pick(random.pick(NOUNS))
    noun = random.pick(NOUNS)[plural]
    middle = (
        f"{random.pick(('of', 'with', 'behind', 'near'))} the {other} "
        if random.happens(0.5)
        else ""
    )
    return (
        f"The {random.pick(_ADJECTIVES)} {noun} {middle}{verb} {random.pick(_PLACES)} "
        f"{random.pick(_TIMES)}."
    )


def determiner(random: StableRandom, good: bool) -> str:
    """``this king`` and ``these kings``."""
    plural = random.happens(0.5)
    word = (("This", "That"), ("These", "Those"))[plural == good]
    noun = random.pick(NOUNS)[plural]
    adjective = f"{random.pick(_ADJECTIVES)} " if random.happens(0.7) else ""
    return (
        f"{random.pick(word)} {adjective}{noun} {random.pick(MOTIONS)[1]} "
        f"{random.pick(_PLACES)} {random.pick(_TIMES)}."
    )


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
        f"The {random.pick(_ADJECTIVES)} {random.pick(random.pick(NOUNS))} {words} "
        f"{random.pick(_PLACES)} {random.pick(_TIMES)}."
    )


def reflexive(random: StableRandom, good: bool) -> str:
    """``the queen`` and ``herself``."""
    woman = random.happens(0.5)
    noun = random.pick(WOMEN if woman else MEN)
    word = ("himself", "herself")[woman == good]
    verb = random.pick(("hurt", "hid", "saw", "saved", "washed", "warmed"))
    return (
        f"The {random.pick(_ADJECTIVES)} {noun} {verb} {word} {random.pick(_PLACES)} "
        f"{random.pick(_TIMES)}."
    )


KINDS = (order, agreement, determiner, auxiliary, reflexive)


def row(random: StableRandom, label: int) -> dict[str, str | int]:
    """One sentence; label 1: acceptable (as CoLA)."""
    return {"sentence": random.pick(KINDS)(random, label == 1), "label": label}
