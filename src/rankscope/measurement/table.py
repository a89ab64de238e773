"""The table of measured layers: its rows, what was skipped, and its conversions and summaries."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rankscope.linalg.surroundings import undisturbed
from rankscope.measurement.overlap import overlapped
from rankscope.measurement.row import SHARES, Row, compared, measured_together
from rankscope.weights.matrix import Matrix, Reading, Skipped, distinct
from rankscope.weights.peft_settings import peft_settings
from rankscope.weights.tensors import one_line

if TYPE_CHECKING:
    import pandas as pd

# bytes of matrices that wait for others of their shape: about the size of a processor's caches
TOGETHER = 2**22
COUNT = 1024  # of them
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


@undisturbed
def tabulated(
    reading: Reading,
    source: str,
    base: str | None,
    *,
    rtol: float,
    certify: bool = False,
    energy: bool = True,
    together: bool = False,
) -> Table:
    """Measures the matrices of a reader, one in memory at a time.

    With ``together`` small matrices wait for others of their shape and are measured in one pass,
    and large ones are measured two at a time; only for readers whose matrices outlast the next one,
    as those gathered from a sharded model do not.

    A matrix is skipped, with the reason, if LAPACK fails on it or memory runs out. With
    ``energy=False`` the singular values for effective ranks and energy ranks are not computed.
    """

    def measured(group: list[Matrix] | Skipped) -> _Outcome:
        if isinstance(group, Skipped):
            return _Outcome((), (group,), {})
        spectra: dict[str, tuple[int, ...]] = {}
        try:
            rows = measured_together(
                group, rtol=rtol, certify=certify, spectra=spectra if energy else None
            )
        except (torch.linalg.LinAlgError, torch.OutOfMemoryError, MemoryError) as error:
            if len(group) > 1:
                return _joined([measured([one]) for one in group])
            why = f"{group[0].matrix} cannot be measured: {one_line(error)}"
            return _Outcome((), (Skipped(group[0].layer, why),), {})
        return _Outcome(tuple(rows), (), spectra)

    groups = _groups(distinct(reading), together)
    threads = torch.get_num_threads() if together else 1
    found = _joined(overlapped(groups, measured, _size, threads))
    return Table(source, base, compared(found.rows), found.skipped, found.energy_ranks)


class _Outcome(NamedTuple):
    """What became of some matrices, in their order."""

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    energy_ranks: dict[str, tuple[int, ...]]


def _joined(parts: list[_Outcome]) -> _Outcome:
    return _Outcome(
        tuple(row for part in parts for row in part.rows),
        tuple(one for part in parts for one in part.skipped),
        {layer: ranks for part in parts for layer, ranks in part.energy_ranks.items()},
    )


def _groups(reading: Reading, together: bool) -> Iterator[list[Matrix] | Skipped]:
    """The matrices that are measured in one pass, and what was skipped. Holds none of them while
    the next are read."""
    waiting: list[Matrix] = []
    held = 0
    for one in reading:
        if isinstance(one, Skipped):
            yield one
            continue
        waiting.append(one)
        held += _size([one])[0]
        del one  # before the next is read
        if not together or held > TOGETHER or len(waiting) >= COUNT:
            group, waiting, held = waiting, [], 0
            yield group
            del group
    if waiting:
        yield waiting


def _size(group: list[Matrix] | Skipped) -> tuple[int, int]:
    """Bytes of the matrices of a group, and how many numbers they are."""
    matrices = [] if isinstance(group, Skipped) else group
    leaves = [leaf for one in matrices if one.operator is not None for leaf in one.operator.leaves]
    return sum(leaf.nbytes for leaf in leaves), sum(leaf.numel() for leaf in leaves)


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
