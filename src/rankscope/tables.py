"""What ``rankscope measure`` prints on a terminal: the layers, a summary per kind of layer, what was left out."""

from __future__ import annotations

import math
from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from rankscope.weights.row import Row
from rankscope.weights.table import Table


def show(table: Table, console: Console | None = None) -> None:
    """Prints the table. Names come from untrusted files, so they are printed as plain text, never as markup."""
    out = console or Console()
    if not out.is_terminal:
        out.width = max(out.width, 140)
    grid, notes = _rows(table)
    out.print(grid)
    for number, note in enumerate(notes, start=1):
        out.print(Text(f"[{number}] {note}"))
    if len(table.rows) > 1:
        out.print(_summary(table))
    for why, count in Counter(one.why for one in table.skipped).items():
        names = [one.layer for one in table.skipped if one.why == why]
        out.print(Text(f"skipped {count}: {names[0]}{' ...' if count > 1 else ''}: {why}"))


def _rows(table: Table) -> tuple[Grid, list[str]]:
    """The layers, and the notes that they refer to by number."""
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("layer", overflow="fold", min_width=20)
    grid.add_column("matrix")
    for name in ("r", "stable rank", "bounds", "sigma_1", "||.||_F", "eff. rank"):
        grid.add_column(name, justify="right", no_wrap=True)
    notes = list(dict.fromkeys(row.note for row in table.rows if row.note))
    if notes:
        grid.add_column("note")
    for row in table.rows:
        cells = [
            row.layer,
            row.matrix,
            "" if row.r is None else str(row.r),
            _number(row.stable_rank),
            _bounds(row),
        ]
        cells += [_number(row.spectral_norm), _number(row.frobenius_norm), _number(row.effective_rank)]
        mark = [f"[{notes.index(row.note) + 1}]" if row.note else ""] if notes else []
        grid.add_row(*map(Text, cells + mark))
    return grid, notes


def _bounds(row: Row) -> str:
    """-0.01% +0.04%: where the truth lies, relative to the value; empty where it is exact to the digits shown."""
    if row.stable_rank is None or row.lower is None or row.upper is None:
        return ""
    below, above = row.lower / row.stable_rank - 1, row.upper / row.stable_rank - 1
    return "" if max(-below, above) < 5e-5 else f"{below:+.2%} {above:+.2%}"


def _summary(table: Table) -> Grid:
    grid = Grid("kind of layer (medians)", "matrix", box=SIMPLE_HEAD, pad_edge=False)
    columns = ("layers", "stable_rank", "lowest", "highest", "utilisation", "drift")
    for name in columns:
        grid.add_column(name.replace("_", " "), justify="right")
    for line in table.summary().to_dict("records"):
        cells = [str(line["kind"]), str(line["matrix"]), str(line["layers"])]
        cells += [_number(line[name]) for name in columns[1:-1]]
        cells.append("" if math.isnan(line["drift"]) else f"{line['drift']:+.1%}")
        grid.add_row(*map(Text, cells))
    return grid


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
