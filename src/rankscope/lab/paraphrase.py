"""Pairs of sentences that say the same, or not: synonyms, active and passive, another word, exchanged parts.

Whether a sentence is passive and which of two synonyms it uses are tossed without looking at the label. A pair that is no paraphrase
differs in one meaning, drawn evenly from all the others, or in who acted on whom.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankscope.lab.chance import Chance
from rankscope.lab.words import ACTS, PEOPLE, PLACES, QUALITIES

Meaning = tuple[str, str]


@dataclass(frozen=True)
class Event:
    """Somebody of some quality did something to somebody, somewhere."""

    quality: Meaning
    actor: Meaning
    act: Meaning
    other: Meaning
    place: Meaning


_CHOICES = {"quality": QUALITIES, "actor": PEOPLE, "act": ACTS, "other": PEOPLE, "place": PLACES}


def draw(chance: Chance) -> Event:
    actor, other = chance.several(PEOPLE, 2)
    return Event(chance.pick(QUALITIES), actor, chance.pick(ACTS), other, chance.pick(PLACES))


def changed(event: Event, chance: Chance, part: str) -> Event:
    """The event with one meaning replaced by another that is not in it."""
    taken = (event.actor, event.other, getattr(event, part))
    return replace(event, **{part: chance.pick([m for m in _CHOICES[part] if m not in taken])})


def exchanged(event: Event) -> Event:
    return replace(event, actor=event.other, other=event.actor)


def sentence(event: Event, chance: Chance) -> str:
    actor, other = f"the {chance.pick(event.quality)} {chance.pick(event.actor)}", f"the {chance.pick(event.other)}"
    act = chance.pick(event.act)
    middle = f"{other} was {act} by {actor}" if chance.happens(PASSIVE) else f"{actor} {act} {other}"
    text = f"{middle} in the {chance.pick(event.place)}."
    return text[0].upper() + text[1:]

PASSIVE = 0.25
ROLES = 0.15
PARTS = ("quality", "actor", "act", "other", "place")

def row(chance: Chance, label: int) -> dict[str, str | int]:
    event = draw(chance)
    second = event
    if label == 0:
        second = exchanged(event) if chance.happens(ROLES) else changed(event, chance, chance.pick(PARTS))
    return {"sentence1": sentence(event, chance), "sentence2": sentence(second, chance), "label": label}
