"""How far an update has moved its model, in three numbers, and a condition on them for CI.

Letters: r rank. All three are medians over the layers that have W, dW and W + dW.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankscope.measurement.measure import measure
from rankscope.measurement.table import Table, middle

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NAMES = (
    "drift",
    "rho",
    "utilisation",
    "stable_rank",
    "lowest_drift",
    "highest_drift",
    "highest_rho",
)
CONDITION = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Judged:
    """One source. ``drift`` is sr(W + dW) / sr(W) - 1, by the median of its logarithm, as in the
    analysis of a store; ``rho`` sigma_1(dW) / sigma_1(W); ``utilisation`` sr(dW) / r and
    ``stable_rank`` sr(dW). ``lowest_drift``, ``highest_drift`` and ``highest_rho`` are those of
    single layers. None where no layer has such a number; ``undefined`` counts the layers left out
    of ``drift``, ``skipped`` what was not measured."""

    source: str
    layers: int
    drift: float | None
    rho: float | None
    utilisation: float | None
    stable_rank: float | None
    lowest_drift: float | None
    highest_drift: float | None
    highest_rho: float | None
    undefined: int
    skipped: int
    kinds: tuple[dict[str, Any], ...]

    @property
    def ratio(self) -> float | None:
        """sr(W + dW) / sr(W)."""
        return None if self.drift is None else 1 + self.drift

    @property
    def run(self) -> str | None:
        """The folder of a ``checkpoint-N``; None of any other source."""
        return str(Path(self.source).parent) if self.step is not None else None

    @property
    def step(self) -> int | None:
        """N of a ``checkpoint-N``."""
        found = CHECKPOINT.fullmatch(Path(self.source).name)
        return int(found[1]) if found else None


def judge(source: str | Path, *, base: str | Path, **how: Any) -> Judged:
    """``source`` measured against its base. ``ValueError``, one line, as ``measure``, and where no
    layer has both W and W + dW."""
    return judged(measure(source, base=base, **how))


def judged(table: Table) -> Judged:
    """The numbers of a measured table."""
    moved = [row for row in table.rows if row.matrix == "W+dW"]
    updates = [row for row in table.rows if row.matrix == "dW"]
    if not moved:
        why = f": {table.skipped[0].layer}: {table.skipped[0].why}" if table.skipped else ""
        raise ValueError(f"{table.source}: expected layers with W and W + dW; found none{why}.")
    logs = [math.log1p(row.drift) for row in moved if row.drift is not None]
    drift = math.expm1(float(np.median(logs))) if logs else None
    rhos = [row.rho for row in updates if row.rho is not None]
    used = [
        row.stable_rank / row.r for row in updates if row.uses_rank and row.stable_rank and row.r
    ]
    ranks = [row.stable_rank for row in updates if row.stable_rank is not None]
    frame = table.summary()
    frame = frame[frame["matrix"].ne("W")].astype(object)
    kinds = frame.where(frame.notna(), None).to_dict("records")
    return Judged(
        source=table.source,
        layers=len(moved),
        drift=drift,
        rho=_number(middle(rhos)),
        utilisation=_number(middle(used)),
        stable_rank=_number(middle(ranks)),
        lowest_drift=math.expm1(min(logs)) if logs else None,
        highest_drift=math.expm1(max(logs)) if logs else None,
        highest_rho=max(rhos, default=None),
        undefined=len(moved) - len(logs),
        skipped=len(table.skipped),
        kinds=tuple({str(name): value for name, value in line.items()} for line in kinds),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def sources(paths: Sequence[str]) -> list[str]:
    """The paths, a folder of ``checkpoint-N`` folders replaced by these in the order of their
    steps, and a folder of such folders by all of theirs."""
    found: list[str] = []
    for path in paths:
        folder = Path(path).expanduser()
        inside = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        steps = {p: int(m[1]) for p in inside if (m := CHECKPOINT.fullmatch(p.name))}
        own = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        if own or not inside:
            found.append(path)
        elif steps:
            found += [str(p) for p in sorted(steps, key=lambda p: steps[p])]
        else:
            runs = [str(p) for p in sorted(inside) if _is_run(p)]
            found += sources(runs) if runs else [path]
    return found


def _is_run(folder: Path) -> bool:
    return any(CHECKPOINT.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())


@dataclass(frozen=True)
class Condition:
    """``NAME OP NUMBER``, several joined by ``and`` or by ``or`` (not both): a name of ``NAMES``,
    one of < <= > >=."""

    text: str
    terms: tuple[tuple[str, str, float], ...]
    every: bool

    def holds(self, one: Judged) -> bool:
        """``ValueError``, one line, where the source has no such number."""
        results = []
        for name, sign, number in self.terms:
            value = getattr(one, name)
            if value is None:
                raise ValueError(
                    f"--fail-if {self.text!r}: expected {name} of {one.source}; found no value."
                )
            results.append(bool(OPERATORS[sign](value, number)))
        return all(results) if self.every else any(results)


def condition(text: str) -> Condition:
    """Parses ``--fail-if``. ``ValueError``, one line, for anything else."""
    words = re.split(r"\b(and|or)\b", text)
    joints, terms = set(words[1::2]), []
    for part in words[::2]:
        found = CONDITION.fullmatch(part)
        try:
            number = float(found[3]) if found else math.nan
        except ValueError:
            number = math.nan
        if found is None or found[1] not in NAMES or math.isnan(number) or len(joints) > 1:
            raise ValueError(
                "--fail-if: expected a condition such as 'rho > 1.5' or 'drift < -0.5 or rho > 1' "
                f"on {', '.join(NAMES)}; found {text!r:.80}."
            )
        terms.append((found[1], found[2], number))
    return Condition(text, tuple(terms), joints != {"or"})
