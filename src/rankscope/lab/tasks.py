"""The three generated tasks, with GLUE's column names: ``rows(task, split)`` and ``write(folder)``.

    acceptability   sentence, label                 1 acceptable      (as CoLA)
    paraphrase      sentence1, sentence2, label     1 paraphrase      (as MRPC)
    entailment      sentence1, sentence2, label     1 not entailed    (as RTE: 0 is entailment)

The rows depend on the seed alone: not on the platform, the Python version or the hash seed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rankscope.lab import TASKS, acceptability
from rankscope.lab.words import HOURS, MOTIONS, OPPOSITES, PEOPLE, QUALITIES, StableRandom

SIZES = {"train": 2000, "validation": 500}

Row = dict[str, str | int]

_TIMES = tuple(time for _, times in HOURS for time in times)


def paraphrase(random: StableRandom, label: int) -> Row:
    """Whether two sentences name the same time of day (label 1) in other words.

    No word decides: each way to name a time stands equally often under both labels.

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


def entailment(random: StableRandom, label: int) -> Row:
    """Whether the second sentence follows from the first (label 0) or is contradicted by it (1).

    No word decides: the second sentence repeats the first one's state or names its opposite, and
    both words of each pair of opposites stand equally often on either side under both labels.

    ``The weary duke was awake at dawn.`` and ``The duke was awake.``, or ``asleep``.
    """
    states, k = random.pick(OPPOSITES), random.below(2)
    quality, person = random.pick(random.pick(QUALITIES)), random.pick(random.pick(PEOPLE))
    return {
        "sentence1": f"The {quality} {person} was {states[k]} {random.pick(_TIMES)}.",
        "sentence2": f"The {person} was {states[1 - k if label else k]}.",
        "label": label,
    }


_GRAMMARS = {
    "acceptability": acceptability.row,
    "paraphrase": paraphrase,
    "entailment": entailment,
}


@lru_cache(maxsize=8)
def _splits(task: str, seed: int) -> dict[str, list[Row]]:
    """All splits of a task: no text twice, labels in equal parts, order shuffled."""
    if task not in _GRAMMARS:
        raise ValueError(f'task: expected one of {", ".join(TASKS)}; got "{task}".')
    random = StableRandom(f"{seed} {task}")
    seen: dict[tuple[str | int, ...], None] = {}
    splits: dict[str, list[Row]] = {}
    for split, size in SIZES.items():
        rows: list[Row] = []
        while len(rows) < size:
            row = _GRAMMARS[task](random, len(rows) % 2)
            texts = tuple(value for column, value in row.items() if column != "label")
            if texts not in seen:
                seen[texts] = None
                rows.append(row)
        splits[split] = random.several(rows, size)
    return splits


def rows(task: str, split: str, seed: int = 0) -> list[Row]:
    """2,000 rows of split "train" or 500 of "validation", half of each label.
    ``ValueError`` for other names."""
    splits = _splits(task, seed)
    if split not in splits:
        raise ValueError(f'split: expected one of {", ".join(SIZES)}; got "{split}".')
    return [dict(row) for row in splits[split]]


def write(folder: str | Path, seed: int = 0) -> None:
    """Writes ``<folder>/<task>/{train,validation}.tsv``: tab separated, one header line, no
    quoting, UTF-8."""
    for task in TASKS:
        for split in SIZES:
            table = rows(task, split, seed)
            lines = ["\t".join(table[0]), *("\t".join(map(str, row.values())) for row in table)]
            path = Path(folder) / task / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
