"""Several measured sources in one table, with a row per layer and a column per source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table as Grid

from rankscope.console import grid, number, output, plain
from rankscope.measurement.row import Row
from rankscope.measurement.table import Table, kind_of, median_drift, middle
from rankscope.measurement.terminal import SHOWN

if TYPE_CHECKING:
    import pandas as pd

MATRICES = ("W", "dW", "W+dW")


@dataclass(frozen=True)
class SideBySide:
    """Tables of sources that were measured on one base, or without one."""

    tables: tuple[Table, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all sources."""
        return tuple(row for table in self.tables for row in table.rows)

    def to_dict(self) -> dict[str, Any]:
        """What ``measure A B --json`` prints: the object of one source, but a list of ``sources``,
        and a ``source`` in every row and every reason to skip."""
        whole = [table.to_dict() for table in self.tables]
        rows, skipped = (
            [{"source": one["source"], **line} for one in whole for line in one[name]]
            for name in ("rows", "skipped")
        )
        head = {"rankscope": whole[0]["rankscope"], "sources": [one["source"] for one in whole]}
        return {**head, "base": whole[0]["base"], "rows": rows, "skipped": skipped}

    def to_pandas(self) -> pd.DataFrame:
        """The rows of all sources, with a first column ``source``."""
        import pandas as pd

        parts = []
        for table in self.tables:
            own = table.to_pandas()
            own.insert(0, "source", pd.Series(table.source, own.index, dtype="string"))
            parts.append(own)
        return pd.concat(parts, ignore_index=True)


def show(found: SideBySide) -> None:
    """Prints stable ranks of all sources beside each other, then drift and rho: layer by layer, and
    medians per kind of layer. What a source lacks is left empty."""
    out = output()
    for place, table in enumerate(found.tables, start=1):
        out.print(plain(f"[{place}] {table.source}"), soft_wrap=True)
    own = [{(row.layer, row.matrix): row for row in table.rows} for table in found.tables]
    layers = {row.layer: place for place, row in reversed([*enumerate(found.rows)])}
    keys = dict.fromkeys((row.layer, row.matrix) for row in found.rows)
    order = sorted(keys, key=lambda key: (layers[key[0]], MATRICES.index(key[1])))
    count = len(found.tables)
    lines = [[*key, *_cells([rows.get(key) for rows in own])] for key in order[:SHOWN]]
    if lines:
        out.print(_grid("layer", lines, count))
    if len(order) > SHOWN:
        out.print(f"{len(order) - SHOWN} more rows: type --json")
    if len(order) > 1:
        out.print(_grid("kind of layer (medians)", _medians(found.tables), count))
    for place, (table, rows) in enumerate(zip(found.tables, own, strict=True), start=1):
        if missing := len(order) - len(rows):
            out.print(plain(f"[{place}] lacks {missing} of {len(order)} matrices"))
        if table.skipped:
            one = table.skipped[0]
            out.print(plain(f"[{place}] skipped {len(table.skipped)}: {one.layer}: {one.why}"))


def _cells(rows: Sequence[Row | None]) -> list[str]:
    """Stable ranks of all sources, then their drifts, then rho."""
    ranks = [number(row.stable_rank if row else None) for row in rows]
    drifts = [number(row.drift if row else None, "+.1%") for row in rows]
    rhos = [number(row.rho if row and row.matrix == "W+dW" else None) for row in rows]
    return [*ranks, *drifts, *rhos]


def _medians(tables: Sequence[Table]) -> list[list[str]]:
    kinds: dict[tuple[str, str], list[list[Row]]] = {}
    for place, table in enumerate(tables):
        for row in table.rows:
            key = (kind_of(row.layer), row.matrix)
            kinds.setdefault(key, [[] for _ in tables])[place].append(row)
    lines = []
    for (kind, matrix), groups in kinds.items():
        ranks = [number(middle([row.stable_rank for row in own])) for own in groups]
        drifts = [number(median_drift(own), "+.1%") for own in groups]
        rhos = [
            number(middle([row.rho for row in own])) if matrix == "W+dW" else "" for own in groups
        ]
        lines.append([kind, matrix, *ranks, *drifts, *rhos])
    return lines


def _grid(first: str, lines: Sequence[Sequence[str]], count: int) -> Grid:
    """``sr``: stable ranks. Without the columns of drift and rho that would be empty."""
    names = [f"{name} [{n}]" for name in ("sr", "drift", "rho") for n in range(1, count + 1)]
    kept = [c for c in range(len(names)) if c < count or any(line[2 + c] for line in lines)]
    found = grid(first, "matrix", *(names[c] for c in kept), left=["matrix"])
    for line in lines:
        found.add_row(*map(plain, (*line[:2], *(line[2 + c] for c in kept))))
    return found
