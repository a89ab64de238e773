"""Sentences that are good English, or almost: one fault of word order or of a verb's form.

No word is a hint by itself: in each kind the fault lies in how two neighbours go together, and each
place takes its values equally often in good and in bad sentences.
"""

from __future__ import annotations

from rankscope.lab.words import ADJECTIVES, MOTIONS, NOUNS, PLACES, TIMES, StableRandom


def order(random: StableRandom, good: bool) -> str:
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


KINDS = (order, auxiliary)


def row(random: StableRandom, label: int) -> dict[str, str | int]:
    """One sentence; label 1: acceptable (as CoLA)."""
    return {"sentence": random.pick(KINDS)(random, label == 1), "label": label}
