"""Pairs"""

from __future__ import annotations
from rankscope.lab.chance import Chance
from rankscope.lab.words import *

WHO = (
    "boy",
    "girl",
    "lady",
    "woman",
    "man",
    "fellow",
    "friend",
    "captain",
    "servant",
    "duke",
    "doctor",
    "judge",
    "bishop",
    "lawyer",
    "stranger",
    "sister",
)
GOT = ("bought", "found", "wanted", "had", "brought", "asked for", "took", "received")


def _match(chance, table, label):
    name, words = chance.pick(table)
    if not label:
        name = chance.pick([n for n, _ in table if n != name])
    return chance.pick(words), name


def use(chance, label):
    w = chance.pick(WHO)
    q = chance.pick(QUALITIES)[0]
    g = chance.pick(GOT)
    thing, u = _match(chance, THINGS, label)
    return f"The {q} {w} {g} {thing}.", f"The {w} {g} something to {u}."


def feeling(chance, label):
    w = chance.pick(WHO)
    f, n = _match(chance, FEELINGS, label)
    p = chance.pick(PLACES)[0]
    return f"The {w} in the {p} was {f}.", f"The {w} was {n}."


def hour(chance, label):
    w = chance.pick(WHO)
    f, n = _match(chance, HOURS, label)
    m = chance.pick(MOTIONS)[1]
    q = chance.pick(QUALITIES)[0]
    return f"The {q} {w} {m} {f}.", f"The {w} {m} {n}."


KINDS = (use, feeling, hour)


def row(chance, label):
    k = chance.pick(KINDS)
    a, b = k(chance, label == 1)
    return {"sentence1": a, "sentence2": b, "label": label, "kind": k.__name__}
