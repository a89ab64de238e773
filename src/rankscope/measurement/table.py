"""The table of measured layers: its rows, what was left out, and the ways to look at it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from rankscope.measurement.row import Row
from rankscope.measurement.suggest import SHARES, peft_settings
from rankscope.weights.matrix import Skipped

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """What ``measure`` and ``probe`` return: rows, and what was not measured with the reason.

    ``energy_ranks``: layer -> the ranks that hold 90, 95 and 99 % of ||dW||_F^2.
    """

    source: str
    base: str | None
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    energy_ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``measure --json`` prints; plain numbers, strings, lists and None."""
        from rankscope import __version__

        return {
            "rankscope": __version__,
            "source": self.source,
            "base": self.base,
            "rows": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
            "skipped": [asdict(one) for one in self.skipped],
        }

    def to_pandas(self) -> pd.DataFrame:
        """One line per row; the shape as ``m`` and ``n``, undefined numbers as NaN, missing ranks as NA."""
        import pandas as pd

        names = [name for name in Row.__dataclass_fields__ if name != "shape"]
        frame = pd.DataFrame([asdict(row) for row in self.rows], columns=[*names[:2], "shape", *names[2:]])
        place = frame.columns.get_loc("shape")
        assert isinstance(place, int)
        shapes = frame.pop("shape")
        frame.insert(place, "m", shapes.map(lambda shape: shape[0]).astype("int64"))
        frame.insert(place + 1, "n", shapes.map(lambda shape: shape[1]).astype("int64"))
        text = ("layer", "matrix", "read_from", "note")
        types = {name: "float64" for name in names if name not in (*text, "r")}
        return frame.astype({**types, "r": "Int64", **dict.fromkeys(text, "string")})

    def peft_settings(self, share: float = 0.99) -> dict[str, Any]:
        """Settings of ``peft.LoraConfig`` with ranks that would hold ``share`` (0.9, 0.95, 0.99) of each dW's energy.

            >>> peft.LoraConfig(target_modules=[...], **table.peft_settings(0.95))  # doctest: +SKIP

        Each layer keeps its scale. Empty where no update has a spectrum. DoRA's updates, which are of full rank, are
        left out.
        """
        if share not in SHARES:
            raise ValueError(f"peft_settings: expected a share out of {SHARES}; found {share}.")
        updates = [row for row in self.rows if row.matrix == "dW"]
        found = {row.read_from for row in updates}
        # Of an adapter its own layers: what was saved in full beside them is no matter of rank.
        kind = next((kind for kind in ("factors", "magnitude", "merge", "difference") if kind in found), "")
        scales = {row.layer: row.scale or 1.0 for row in updates if row.read_from == kind != "magnitude"}
        ranks = {
            layer: held[SHARES.index(share)] for layer, held in self.energy_ranks.items() if layer in scales
        }
        return peft_settings(ranks, scales)

    def summary(self) -> pd.DataFrame:
        """Medians per kind of layer, since means over layers of different shapes hide structure.

        A kind is a layer's name with its numbers replaced by ``*``. Columns: ``kind``, ``matrix``, ``m``,
        ``n``, ``layers`` (how many), ``undefined`` (how many of them have no stable rank), the medians ``r``,
        ``stable_rank``, ``utilisation`` (sr / r), ``relative`` (sr / min(m, n)), ``effective_rank``,
        ``spectral_norm``, ``frobenius_norm``, the extremes ``lowest`` and ``highest`` of the stable rank, and
        for W+dW ``drift``: sr(W + dW) / sr(W) - 1, over layers by the median of its logarithm.
        """
        import pandas as pd

        W = {row.layer: row.stable_rank for row in self.rows if row.matrix == "W"}
        groups: dict[tuple[str, str, tuple[int, int]], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((kind_of(row.layer), row.matrix, row.shape), []).append(row)
        lines = [_summary_line(*key, rows, W) for key, rows in groups.items()]
        return pd.DataFrame(
            lines, columns=list(lines[0]) if lines else ["kind", "matrix", "layers", "stable_rank"]
        )


def kind_of(layer: str) -> str:
    """``encoder.layer.3.attention.self.query`` -> ``encoder.layer.*.attention.self.query``."""
    return re.sub(r"(?<![^.\[])\d+(?![^.\]])", "*", layer)


def drift(rows: list[Row], W: Mapping[str, float | None]) -> float | None:
    """sr(W + dW) / sr(W) - 1 over layers, by the median of its logarithm; None where no layer has both."""
    logs = [
        math.log(row.stable_rank / before)
        for row in rows
        if row.matrix == "W+dW" and row.stable_rank and (before := W.get(row.layer))
    ]
    return math.expm1(median(logs)) if logs else None


def _summary_line(
    kind: str, matrix: str, shape: tuple[int, int], rows: list[Row], W: Mapping[str, float | None]
) -> dict[str, Any]:
    ranks = [row.stable_rank for row in rows if row.stable_rank is not None]
    return {
        "kind": kind,
        "matrix": matrix,
        "m": shape[0],
        "n": shape[1],
        "layers": len(rows),
        "undefined": len(rows) - len(ranks),
        "r": middle([row.r for row in rows]),
        "stable_rank": middle(ranks),
        "lowest": min(ranks, default=math.nan),
        "highest": max(ranks, default=math.nan),
        "utilisation": middle(
            [row.stable_rank / row.r for row in rows if row.stable_rank and row.r and row.uses_rank]
        ),
        "relative": middle([rank / min(shape) for rank in ranks]),
        "effective_rank": middle([row.effective_rank for row in rows]),
        "spectral_norm": middle([row.spectral_norm for row in rows]),
        "frobenius_norm": middle([row.frobenius_norm for row in rows]),
        "drift": math.nan if (found := drift(rows, W)) is None else found,
    }


def middle(values: list[Any]) -> float:
    """The median of what is there; NaN where nothing is."""
    there = [float(value) for value in values if value is not None]
    return median(there) if there else math.nan
