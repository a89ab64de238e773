"""What ``rankscope measure`` prints on a terminal: the layers, a summary per kind of
layer, what was left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table as Grid

from rankscope.console import defused, grid, number, output, plain, visible
from rankscope.measurement.resized import Resized
from rankscope.measurement.row import SHARES, Row
from rankscope.measurement.table import Table

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 2000  # rows, and reasons to skip, on a terminal: a table of 60,000 takes it a minute
ALWAYS = ("layer", "matrix", "stable rank")


class Rows(Protocol):
    """What can be written as rows: a ``Table``, or several side by side."""

    def to_pandas(self) -> pd.DataFrame: ...


def show(table: Table) -> None:
    """Prints the table. Names come from untrusted files: they are printed as plain text,
    never as markup or codes."""
    out = output()
    if table.rows:
        lines, notes = _rows(table)
        out.print(lines)
        for number, note in enumerate(notes, start=1):
            out.print(plain(f"[{number}] {note}"))
    if len(table.rows) > 1:
        out.print(_summary(table))
    _suggest(table, out)
    reasons: dict[str, list[str]] = {}
    for one in table.skipped:
        reasons.setdefault(one.why, []).append(one.layer)
    for why, names in list(reasons.items())[:SHOWN]:
        more = " ..." if len(names) > 1 else ""
        out.print(plain(f"skipped {len(names)}: {names[0]}{more}: {why}"))
    for what, count in (("rows", len(table.rows)), ("reasons to skip", len(reasons))):
        if count > SHOWN:
            out.print(f"{count - SHOWN} more {what}: type --json")
    if not table.rows:
        out.print("nothing was measured")


def show_resized(result: Resized) -> None:
    """Prints what was cut, layer by layer, and the error of all together."""
    out = output()
    cuts = grid("layer", "shape", "r", "rank", "error", "spectral error")
    for cut in result.layers[:SHOWN]:
        cells = (f"{cut.shape[0]} x {cut.shape[1]}", str(cut.r), str(cut.rank))
        errors = (f"{cut.error:.4g}", f"{cut.spectral_error:.4g}")
        cuts.add_row(*map(plain, (cut.layer, *cells, *errors)))
    out.print(cuts)
    if len(result.layers) > SHOWN:
        out.print(f"{len(result.layers) - SHOWN} more layers: type --json")
    size = f"{result.bytes_before} -> {result.bytes_after} bytes"
    out.print(
        plain(
            f"all layers: error {result.error:.4g}, spectral error "
            f"{result.spectral_error:.4g}; {size}"
        )
    )
    if result.threshold is not None:
        out.print(f"kept: singular values from {result.threshold:.4g}")
    if result.kept:
        out.print(
            plain(f"kept as they are: {len(result.kept)} other tensors, such as {result.kept[0]}")
        )
    for note in result.notes:
        out.print(plain(note))
    reasons: dict[str, list[str]] = {}
    for one in result.lost:
        reasons.setdefault(one.why, []).append(one.name)
    for why, names in reasons.items():
        more = " ..." if len(names) > 1 else ""
        out.print(plain(f"changed, but not in the adapter, {len(names)}: {names[0]}{more}: {why}"))
    out.print(plain(f"written: {result.to}"), soft_wrap=True)


def writable(path: str) -> Path:
    """The place of a new file. ``ValueError``, one line, where none can be written."""
    place = Path(path)
    if not place.parent.is_dir() or place.is_dir():
        raise ValueError(
            f"{path}: expected a file in a folder that exists; found "
            f"{'a folder' if place.is_dir() else 'no such folder'}."
        )
    return place


def write_parquet(table: Rows, path: str) -> None:
    """The rows as a Parquet file, whole or not at all: written beside ``path``, then renamed."""
    place = writable(path)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        table.to_pandas().to_parquet(partial, index=False)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def as_csv(table: Rows, *, raw: bool = False) -> str:
    """The rows, comma-separated, with control characters in names escaped; names that a spreadsheet
    would run as formulas have an apostrophe before them, unless `raw`."""
    frame = table.to_pandas()
    for name in frame.columns.intersection(["source", "layer", "note"]):
        frame[name] = frame[name].map(visible, na_action="ignore")
        if not raw:
            frame[name] = frame[name].map(defused, na_action="ignore")
    return frame.to_csv(index=False)


def settings_of(table: Table, share: float) -> dict[str, Any]:
    """The settings that ``--suggest`` prints. ``ValueError`` if there is no update to suggest ranks
    for."""
    found = table.peft_settings(share)
    if not found:
        zero = [row for row in table.rows if row.matrix == "dW" and row.frobenius_norm == 0]
        what = f"{len(zero)} that are zero" if zero else "none; a checkpoint's needs --base MODEL"
        raise ValueError(
            f"{table.source}: expected an update dW to suggest ranks for; found {what}."
        )
    return found


def _rows(table: Table) -> tuple[Grid, list[str]]:
    """The layers, without empty columns, and the notes that they refer to by number."""
    notes = list(dict.fromkeys(row.note for row in table.rows[:SHOWN] if row.note))
    numbers = {note: number for number, note in enumerate(notes, start=1)}
    lines = [_cells(row, table, numbers) for row in table.rows[:SHOWN]]
    kept = [name for name in lines[0] if name in ALWAYS or any(line[name] for line in lines)]
    found = grid(*kept, left=("matrix", "note"))
    for line in lines:
        found.add_row(*(plain(line[name]) for name in kept))
    return found, notes


def _cells(row: Row, table: Table, notes: dict[str, int]) -> dict[str, str]:
    """Column -> its text."""
    update = row.matrix == "dW"
    return {
        "layer": row.layer,
        "matrix": row.matrix,
        "r": "" if row.r is None else str(row.r),
        "stable rank": number(row.stable_rank),
        "bounds": _bounds(row),
        "sr/r": f"{row.stable_rank / row.r:.0%}"
        if row.uses_rank and row.stable_rank and row.r
        else "",
        "drift": "" if row.drift is None else f"{row.drift:+.1%}",
        "rho": number(row.rho) if row.matrix == "W+dW" else "",
        "sigma_1": number(row.spectral_norm),
        "||.||_F": number(row.frobenius_norm),
        "eff. rank": number(row.effective_rank),
        "r at 90|95|99 %": " | ".join(
            map(str, table.energy_ranks.get(row.layer, ()) if update else ())
        ),
        "note": f"[{notes[row.note]}]" if row.note else "",
    }


def _suggest(table: Table, out: Console) -> None:
    """Ranks that would have been enough, as PEFT takes them: LoraConfig(**...), or lines of
    adapter_config.json."""
    for share in SHARES:
        if settings := table.peft_settings(share):
            out.print(
                plain(f"for {share:.0%} of the energy of each dW: {json.dumps(settings)}"),
                soft_wrap=True,
            )


def _bounds(row: Row) -> str:
    """-0.01% +0.04%: where the truth lies, relative to the value; empty where it is
    exact to the digits shown."""
    if row.stable_rank is None or row.lower is None or row.upper is None:
        return ""
    below, above = row.lower / row.stable_rank - 1, row.upper / row.stable_rank - 1
    return "" if max(-below, above) < 5e-5 else f"{below:+.2%} {above:+.2%}"


def _summary(table: Table) -> Grid:
    columns = ("layers", "stable_rank", "lowest", "highest", "utilisation", "rho", "drift")
    names = [name.replace("_", " ") for name in columns]
    found = grid("kind of layer (medians)", "matrix", *names, left=["matrix"])
    for line in table.summary().to_dict("records"):
        cells = [str(line["kind"]), str(line["matrix"]), str(line["layers"])]
        cells += [number(line[name]) for name in columns[1:-1]]
        cells.append(number(line["drift"], "+.1%"))
        found.add_row(*map(plain, cells))
    return found
