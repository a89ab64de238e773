"""The suggested rank, from a store to the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid

from rankscope.analysis.inference import end
from rankscope.analysis.rank_pattern import RankPattern, Validation
from rankscope.analysis.suggest import MARGIN, Suggestion
from rankscope.analysis.suggest import suggest as suggesting
from rankscope.console import output, plain
from rankscope.report.from_store import open_frames
from rankscope.store.store import Store


def suggest(
    store: str | Path | Store, *, margin: float = MARGIN, task: str | None = None
) -> tuple[Suggestion, ...]:
    """The smallest sufficient LoRA rank per model, task and scaling rule of a store
    (`rankscope.analysis.suggest`). ``store`` may also be the folder ``data`` beside a report.

    Raises ``ValueError`` without finished LoRA trials, if ``margin`` is not positive, or if
    ``task`` is not in the study; ``OSError`` if there is no store.
    """
    return suggesting(open_frames(store), margin=margin, task=task)


def as_dict(
    found: Sequence[Suggestion],
    patterns: Sequence[RankPattern | str],
    validated: Sequence[Validation | str | None],
) -> dict[str, Any]:
    """What ``rankscope suggest --json`` prints: docs/formats.md. ``patterns`` and ``validated``
    have an entry per suggestion; a text is the reason why there is none."""
    return {
        "suggestions": [
            one.to_dict()
            | {
                "rank_pattern": None if isinstance(pattern, str) else vars(pattern),
                "no_rank_pattern": pattern if isinstance(pattern, str) else None,
                "validation": result.to_dict() if isinstance(result, Validation) else None,
            }
            for one, pattern, result in zip(found, patterns, validated, strict=True)
        ]
    }


def show(
    found: Sequence[Suggestion],
    patterns: Sequence[RankPattern | str],
    validated: Sequence[Validation | str | None],
) -> None:
    """Prints each suggestion: a line, a table of ranks, notes; its pattern, and what retraining
    says of that."""
    out = output(width=120)
    out.soft_wrap = True
    for one, pattern, result in zip(found, patterns, validated, strict=True):
        said = "no rank suggested" if one.rank is None else f"rank {one.rank}"
        if one.learning_rate is not None:
            said += f" at {one.learning_rate:g}"
        head = f"{one.model}, {one.task}, {one.scaling}: {said}: {one.reason}"
        out.print(plain(head))
        grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("rank", "rate", "seeds", one.metric, "worse by", "at most", ""):
            grid.add_column(
                plain(name), justify="left" if not name else "right", no_wrap=bool(name)
            )
        for row in one.ranks:
            numbers = [f"{v:z.4f}" if v == v else "" for v in (row.value, row.worse, row.at_most)]
            words = [str(row.rank), f"{row.learning_rate:g}", str(row.seeds), *numbers, row.why]
            grid.add_row(*map(plain, words))
        out.print(grid)
        for note in one.notes:
            out.print(plain(f"note: {note}"))
        _show_pattern(pattern, result, out)
        out.print()


def _show_pattern(
    pattern: RankPattern | str, result: Validation | str | None, out: Console
) -> None:
    if isinstance(pattern, str):
        out.print(plain(f"no rank_pattern: {pattern}"))
        return
    ranks = ", ".join(f"{json.dumps(name)} = {rank}" for name, rank in pattern.ranks.items())
    said = (
        f"rank_pattern of {pattern.parameters:,} parameters (rank {pattern.uniform} in every "
        f"layer: {pattern.uniform_parameters:,}), from the energies of {pattern.trials} updates:"
    )
    out.print(plain(said))
    out.print(plain(f"rank_pattern = {{ {ranks} }}"))
    if not isinstance(result, Validation):
        out.print(plain("It is not validated. --validate trains it beside a uniform rank."))
        return
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    names = ("design", "parameters", result.metric, "pattern minus it", "95 % interval")
    for name in names:
        grid.add_column(plain(name), justify="left" if name == "design" else "right", no_wrap=True)
    against = {one.against: one.difference for one in result.contrasts}
    for design, value in result.values.items():
        cells = [design, f"{result.parameters[design]:,}", f"{value:z.4f}"]
        if (found := against.get(design)) is not None:
            cells.append(f"{found.estimate:+z.4f}")
            cells.append(
                f"[{end(found.low, '+.4f')}, {end(found.high, '+.4f')}]"
                if found.known
                else "one seed"
            )
        grid.add_row(*map(plain, cells))
    out.print(grid)
    seeds = f"seeds {result.seeds[0]} to {result.seeds[-1]}"
    out.print(plain(f"{len(result.seeds)} {seeds}, paired: {result.sentence}."))
    if result.lost:
        out.print(plain(f"note: a design has no metric at seed {', '.join(map(str, result.lost))}"))
    out.print(plain(f"its trials: {result.store}"))
