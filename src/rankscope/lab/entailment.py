"""Pairs where the second sentence follows from the first (0), or does not (1): negation, opposites, other people.

The label is the parity of what the two sentences deny and oppose, so that no word and no sum of words says it.
"""

from __future__ import annotations

from rankscope.lab.chance import Chance
from rankscope.lab.words import OPPOSITES, QUALITIES, GROUPS, MOTIONS

PERSONS = (
    "king",
    "boy",
    "girl",
    "lady",
    "captain",
    "doctor",
    "bishop",
    "lawyer",
    "sister",
    "father",
    "servant",
    "stranger",
    "judge",
    "duke",
)
TIMES = ("that night", "all day", "this morning", "yesterday", "at last", "again", "by then", "in town")
WEIGHTS = {"negation": 0.35, "opposite": 0.3, "group": 0.35}


def _kind(chance):
    x = chance._random()
    for k, w in WEIGHTS.items():
        x -= w
        if x < 0:
            return k
    return k


def row(chance: Chance, label: int) -> dict[str, str | int]:
    kind = _kind(chance)
    first, second = chance.happens(0.5), chance.happens(0.5)  # is it denied?
    if kind == "group":
        name, ws = chance.pick(GROUPS)
        m = chance.pick(MOTIONS)[1]
        if label:
            name = chance.pick([n for n, _ in GROUPS if n != name])
        return {
            "sentence1": f"The {chance.pick(QUALITIES)[0]} {chance.pick(ws)} {m} {chance.pick(TIMES)}.",
            "sentence2": f"{name[0].upper()}{name[1:]} {m}.",
            "label": label,
            "kind": kind,
        }
    state = chance.pick(OPPOSITES[:5])
    if not chance.happens(0.5):
        state = state[::-1]
    who = other = chance.pick(PERSONS)
    q = chance.pick(QUALITIES)[0]
    opposed = False
    if kind == "negation":
        second = first != (label == 1)
    elif kind == "opposite":
        second = first = False if chance.happens(0.7) else True
        opposed = label == 1
    elif kind == "both":
        opposed = (first != second) != (label == 1)
    else:
        second = first
        if label:
            while other == who:
                other = chance.pick(PERSONS)
    a = f"The {q} {who} was {'not ' if first else ''}{state[0]} {chance.pick(TIMES)}."
    b = f"The {other} was {'not ' if second else ''}{state[1] if opposed else state[0]}."
    return {"sentence1": a, "sentence2": b, "label": label, "kind": kind}
