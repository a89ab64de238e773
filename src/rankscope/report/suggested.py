"""The suggested rank, from a store to the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from rankscope.analysis.suggest import MARGIN, Suggestion
from rankscope.analysis.suggest import suggest as suggesting
from rankscope.console import visible
from rankscope.report.from_store import frames, open_frames
from rankscope.store.store import Store


def suggest(
    store: str | Path | Store, *, margin: float = MARGIN, task: str | None = None
) -> tuple[Suggestion, ...]:
    """The smallest sufficient LoRA rank per model, task and scaling rule of a store
    (`rankscope.analysis.suggest`). ``store`` may also be the folder ``data`` beside a report.

    Raises ``ValueError`` without finished LoRA trials, if ``margin`` is not positive, or if
    ``task`` is not in the study; ``OSError`` if there is no store.
    """
    found = frames(store) if isinstance(store, Store) else open_frames(store)
    return suggesting(found, margin=margin, task=task)


def as_dict(found: tuple[Suggestion, ...]) -> dict[str, Any]:
    """What ``rankscope suggest --json`` prints: docs/formats.md."""
    return {"suggestions": [one.to_dict() for one in found]}


def show(found: tuple[Suggestion, ...], console: Console | None = None) -> None:
    """Prints each suggestion: a line, a table of ranks, notes."""
    out = console or Console(soft_wrap=True)
    if not out.is_terminal:
        out.width = max(out.width, 120)
    for one in found:
        said = "no rank suggested" if one.rank is None else f"rank {one.rank}"
        if one.learning_rate is not None:
            said += f" at {one.learning_rate:g}"
        head = f"{one.model}, {one.task}, {one.scaling}: {said}: {one.reason}"
        out.print(Text(visible(head)))
        grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("rank", "rate", "seeds", visible(one.metric), "worse by", "at most", ""):
            grid.add_column(Text(name), justify="left" if not name else "right", no_wrap=bool(name))
        for row in one.ranks:
            numbers = [f"{v:.4f}" if v == v else "" for v in (row.value, row.worse, row.at_most)]
            words = [str(row.rank), f"{row.learning_rate:g}", str(row.seeds), *numbers, row.why]
            grid.add_row(*map(Text, words))
        out.print(grid)
        for note in one.notes:
            out.print(Text(f"note: {visible(note)}"))
        out.print()
