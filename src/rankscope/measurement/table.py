"""The table of measured layers: its rows, what was skipped, and its conversions and summaries."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from rankscope.measurement.row import SHARES, Row
from rankscope.weights.matrix import Skipped
from rankscope.weights.peft_settings import peft_settings

if TYPE_CHECKING:
    import pandas as pd

HELD = tuple(f"r{round(100 * share)}" for share in SHARES)


@dataclass(frozen=True)
class Table:
    """The result of ``measure`` and ``probe``: rows, and what was not measured, with reasons.

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
            "rows": [
                {**asdict(row), "shape": list(row.shape), **self._held(row)} for row in self.rows
            ],
            "skipped": [asdict(one) for one in self.skipped],
        }

    def to_pandas(self) -> pd.DataFrame:
        """One line per row; the shape as ``m`` and ``n``, undefined numbers as NaN, missing ranks
        as NA. ``r90``, ``r95`` and ``r99`` are the ranks that hold so much of ||dW||_F^2."""
        import pandas as pd

        names = [name for name in Row.__dataclass_fields__ if name != "shape"]
        frame = pd.DataFrame(
            [asdict(row) for row in self.rows], columns=[*names[:2], "shape", *names[2:]]
        )
        place = frame.columns.get_loc("shape")
        assert isinstance(place, int)
        shapes = frame.pop("shape")
        frame.insert(place, "m", shapes.map(lambda shape: shape[0]).astype("int64"))
        frame.insert(place + 1, "n", shapes.map(lambda shape: shape[1]).astype("int64"))
        for name in HELD:
            frame[name] = pd.array([self._held(row)[name] for row in self.rows], dtype="Int64")
        text = ("layer", "matrix", "read_from", "note")
        types = {name: "float64" for name in names if name not in (*text, "r")}
        return frame.astype({**types, "r": "Int64", **dict.fromkeys(text, "string")})

    def peft_settings(self, share: float = 0.99) -> dict[str, Any]:
        """Settings of ``peft.LoraConfig`` with ranks that would hold ``share`` (0.9,
        0.95, 0.99) of each dW's energy.

            >>> peft.LoraConfig(target_modules=[...], **table.peft_settings(0.95))  # doctest: +SKIP

        Each layer keeps its scale. Empty where no update has a spectrum. DoRA's updates, which
        are of full rank, are left out.
        """
        if share not in SHARES:
            raise ValueError(f"peft_settings: expected a share out of {SHARES}; found {share}.")
        updates = [row for row in self.rows if row.matrix == "dW"]
        found = {row.read_from for row in updates}
        # Only the adapter's own layers: weights saved in full beside them have no rank to suggest.
        kind = next(
            (kind for kind in ("factors", "magnitude", "merge", "difference") if kind in found), ""
        )
        scales = {
            row.layer: row.scale or 1.0 for row in updates if row.read_from == kind != "magnitude"
        }
        ranks = {
            layer: held[SHARES.index(share)]
            for layer, held in self.energy_ranks.items()
            if layer in scales
        }
        return peft_settings(ranks, scales)

    def summary(self) -> pd.DataFrame:
        """Medians per kind of layer, since means over layers of different shapes hide structure.

        A kind is a layer's name with its numbers replaced by ``*``. Columns: ``kind``, ``matrix``,
        ``m``, ``n``, ``layers`` (how many), ``undefined`` (how many of them have no stable rank),
        the medians ``r``, ``stable_rank``, ``utilisation`` (sr / r), ``relative`` (sr / min(m, n)),
        ``effective_rank``, ``spectral_norm``, ``frobenius_norm``, of updates ``r90``, ``r95`` and
        ``r99`` (the ranks that hold so much of ||dW||_F^2; NaN elsewhere), the extremes ``lowest``
        and ``highest`` of the stable rank, and, where W was measured, too, ``drift`` (of W+dW, by
        the median of its logarithm) and ``rho``.
        """
        import pandas as pd

        groups: dict[tuple[str, str, tuple[int, int]], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((kind_of(row.layer), row.matrix, row.shape), []).append(row)
        lines = [
            _summary_line(*key, rows)
            | {name: middle([self._held(row)[name] for row in rows]) for name in HELD}
            for key, rows in groups.items()
        ]
        return pd.DataFrame(
            lines, columns=list(lines[0]) if lines else ["kind", "matrix", "layers", "stable_rank"]
        )

    def _held(self, row: Row) -> dict[str, int | None]:
        """The ranks that hold each of `SHARES` of an update's energy; None of other matrices."""
        ranks = self.energy_ranks.get(row.layer) if row.matrix == "dW" else None
        return dict(zip(HELD, ranks or (None,) * len(HELD), strict=True))

    def _repr_html_(self) -> str:
        """What a notebook shows: the medians per kind of layer; `to_pandas` has every layer."""
        from rankscope.notebook import MOST, number, table

        lines = self.summary().to_dict("records") if self.rows else []
        kept = ("stable_rank", "lowest", "highest", "utilisation", "drift", "rho")
        rows = [
            [
                line["kind"],
                line["matrix"],
                f"{line['m']} x {line['n']}",
                line["layers"],
                *(number(line[name]) for name in kept),
                " | ".join(number(line[name], "g") for name in HELD)
                if line["matrix"] == "dW"
                else "",
            ]
            for line in lines[:MOST]
        ]
        words = [f"{len(self.rows)} matrices"]
        words += [f"{len(lines) - MOST} more kinds of layer"] if len(lines) > MOST else []
        words += [f"{len(self.skipped)} not measured (.skipped)"] if self.skipped else []
        headings = ["kind of layer (medians)", "matrix", "shape", "layers", "stable rank"]
        headings += ["lowest", "highest", "sr / r", "drift", "rho", "r for 90 | 95 | 99 %"]
        base = f" on {self.base}" if self.base else ""
        return table(
            headings,
            rows,
            numbers=[False, False, *[True] * 9],
            title=f"{self.source}{base}",
            note="; ".join(words),
        )


def kind_of(layer: str) -> str:
    """``encoder.layer.3.attention.self.query`` -> ``encoder.layer.*.attention.self.query``."""
    return re.sub(r"(?<![^.\[])\d+(?![^.\]])", "*", layer)


def median_drift(rows: Iterable[Row]) -> float:
    """The median drift of rows of W+dW, taken over logarithms; NaN if there is none."""
    return math.expm1(middle([math.log1p(row.drift) for row in rows if row.drift is not None]))


def _summary_line(
    kind: str, matrix: str, shape: tuple[int, int], rows: list[Row]
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
        "drift": median_drift(rows),
        "rho": middle([row.rho for row in rows]),
    }


def middle(values: list[Any]) -> float:
    """The median of the values that are not None; NaN if there are none."""
    there = [float(value) for value in values if value is not None]
    return median(there) if there else math.nan
