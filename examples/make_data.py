"""Writes the examples' data: letters to a shop, pairs of sentences, reviews with stars, and chats.

python examples/make_data.py
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

HERE = Path(__file__).parent
GOODS = ("lamp", "coat", "chair", "clock", "book", "kettle", "mirror", "saddle")
PEOPLE = ("my wife", "my brother", "the captain", "our neighbour", "my aunt", "the doctor")
LETTERS = {
    "complaint": (
        "The {good} came broken, and nobody has answered me.",
        "I am angry: the {good} you sent to {person} fell to pieces.",
        'You wrote "as good as new". This {good} is old, and dirty.',
    ),
    "order": (
        "Please send one {good} to {person} before Sunday.",
        "I wish to buy the {good} in your window, and will pay in silver.",
        "Kindly put aside a {good} for {person}; I shall come for it.",
    ),
    "praise": (
        "Never have I owned a better {good}; thank you, with all my heart.",
        'The {good} is beautiful, and {person} calls it "the best in the house".',
        "What a fine {good}! It gave {person} the greatest joy.",
    ),
    "question": (
        "Do you sell a {good} that {person} could carry?",
        "How much is the {good}, and when can it be here?",
        "Is the {good} still to be had, or did {person} take the last?",
    ),
}
STARS = ("dreadful", "poor", "passable", "good", "very good", "excellent")


def letters(draw: random.Random) -> list[tuple[str, str]]:
    """(text, kind), as many of each kind."""
    return [
        (draw.choice(texts).format(good=draw.choice(GOODS), person=draw.choice(PEOPLE)), kind)
        for _ in range(60)
        for kind, texts in LETTERS.items()
    ]


def pairs(draw: random.Random) -> list[dict[str, str]]:
    """Two sentences, and whether the second follows from the first."""
    found = []
    for number in range(240):
        person, good, other = draw.choice(PEOPLE), *draw.sample(GOODS, 2)
        follows = number % 2 == 0
        found.append(
            {
                "first": f"{person.capitalize()} bought a {good} and a stool.",
                "second": f"{person.capitalize()} "
                + (f"owns the {good} now." if follows else f"may like the {other}."),
                "label": "follows" if follows else "unknown",
            }
        )
    return found


def reviews(draw: random.Random) -> list[tuple[str, float]]:
    """(text, stars from 0 to 5)"""
    return [
        (
            f"A {STARS[number % 6]} {draw.choice(GOODS)}, said {draw.choice(PEOPLE)}.",
            float(number % 6),
        )
        for number in range(240)
    ]


def chats(draw: random.Random) -> list[dict[str, list[dict[str, str]]]]:
    """A customer and the shop, who know each other's words after a while: one or two turns."""
    found = []
    for number in range(160):
        good, person, coins = draw.choice(GOODS), draw.choice(PEOPLE), draw.randint(2, 9)
        said = [
            ("user", f"How much is the {good}?"),
            ("assistant", f"The {good} is {coins} silver coins."),
        ]
        if number % 2:
            said += [
                ("user", f"Then send it to {person}."),
                ("assistant", f"We send the {good} to {person} today."),
            ]
        found.append({"messages": [{"role": role, "content": text} for role, text in said]})
    return found


def write_csv(path: Path, header: tuple[str, str], rows: list[tuple[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    draw = random.Random(0)
    write_csv(HERE / "letters" / "letters.csv", ("letter", "kind"), [*letters(draw)])
    lines = [json.dumps(pair) + "\n" for pair in pairs(draw)]
    (HERE / "pairs" / "train.jsonl").write_text("".join(lines[:180]), encoding="utf-8")
    (HERE / "pairs" / "validation.jsonl").write_text("".join(lines[180:]), encoding="utf-8")
    write_csv(HERE / "reviews" / "reviews.csv", ("review", "stars"), [*reviews(draw)])
    (HERE / "chats" / "chats.jsonl").write_text(
        "".join(json.dumps(chat) + "\n" for chat in chats(draw)), encoding="utf-8"
    )
