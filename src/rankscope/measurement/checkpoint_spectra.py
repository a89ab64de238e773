"""The spectra of a trial that was trained elsewhere, measured from its saved weights as training
measures them (docs/formats.md, spectra.parquet)."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch

from rankscope.linalg import LowRank, Operator, summary
from rankscope.weights import Matrix, Skipped, read

COLUMNS = ("stable_rank", "lower", "upper", "spectral_norm", "frobenius_norm", "effective_rank")
RTOL = 1e-3  # relative width of the bounds
# entries times the short side up to which singular values cost less than looks at bounds
FEW = 2**23
# and up to which the effective rank of a dense update, which needs all of them, is worth it
DENSE = 2**30
OWN = ("factors", "magnitude", "merge")  # an adapter's own layers; others were saved beside it
# layers that PEFT's "all-linear" excludes, and embeddings
NOT_LINEAR = re.compile(
    r"(.*\.)?(\w*embed\w*|wte|wpe|shared|relative_attention_bias|lm_head|classifier|score|"
    r"qa_outputs|cls|pre_classifier|decoder_head)(\..*)?"
)
ALL_LINEAR = "all-linear"


@dataclass
class Spectra:
    """Measured checkpoints of trials on one base, whose own spectra are taken once.

    ``base``: a path or a hub id; without it there are rows of dW only, and of full fine-tunes none.
    ``skipped``: layer -> why it was not measured.
    """

    base: str | Path | None
    skipped: dict[str, str] = field(default_factory=dict)
    _of_base: dict[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    def of(
        self, checkpoints: Mapping[int, str | Path], *, targets: Collection[str] | None
    ) -> pd.DataFrame:
        """The rows of one trial: of W at step 0, of dW and W + dW at each step of ``checkpoints``.

        ``targets``: of a full fine-tune the names that its layers end with, or "all-linear"; None
        for an adapter, whose layers are its own. ``ValueError``, one line, where nothing can be
        measured.
        """
        rows: list[dict[str, object]] = []
        based: dict[str, dict[str, object]] = {}
        for step, source in sorted(checkpoints.items()):
            found = False
            for one in self._matrices(source, targets):
                row = _row(one, step=0 if one.matrix == "W" else step)
                if one.matrix == "W":
                    if one.layer not in based:
                        numbers = self._of_base.get(one.layer) or _numbers(one)
                        self._of_base[one.layer] = numbers
                        based[one.layer] = row | dict(zip(COLUMNS, numbers, strict=True))
                    continue
                found |= one.matrix == "dW"
                rows.append(row | dict(zip(COLUMNS, _numbers(one), strict=True)))
            if not found:
                why = next(iter(self.skipped.values()), "it has none")
                raise ValueError(f"{source}: expected updates to measure; found none: {why}")
        frame = pd.DataFrame([*based.values(), *rows])
        return frame.astype({"step": "int64", "m": "int64", "n": "int64"})

    def _matrices(self, source: str | Path, targets: Collection[str] | None) -> Iterator[Matrix]:
        pattern = None
        if targets is not None and ALL_LINEAR not in targets:
            pattern = re.compile(rf"(^|\.)({'|'.join(map(re.escape, targets))})$")
        kept: dict[str, bool] = {}
        waiting: dict[str, Matrix] = {}
        for one in read(source, base=self.base, layers=pattern):
            if isinstance(one, Skipped):
                if pattern is None or pattern.search(one.layer):
                    self.skipped.setdefault(one.layer, one.plain)
                continue
            if one.operator is None:
                self.skipped.setdefault(one.layer, one.note or "nothing to measure")
                continue
            if one.matrix == "W":  # before it is known whose layer it is
                waiting[one.layer] = one
                continue
            if one.matrix == "dW":
                kept[one.layer] = _belongs(one, adapter=targets is None)
            if kept.get(one.layer):
                if one.layer in waiting:
                    yield waiting.pop(one.layer)
                yield one


@lru_cache(maxsize=4)
def spectra_on(base: str | Path | None, mark: str | None) -> Spectra:
    """The ``Spectra`` of that base, kept from trial to trial; ``mark``, its fingerprint, tells it
    from another one of the same name."""
    return Spectra(base)


def _belongs(one: Matrix, *, adapter: bool) -> bool:
    if adapter:
        return one.read_from in OWN
    return one.read_from == "difference" and not NOT_LINEAR.fullmatch(one.layer)


def _row(one: Matrix, *, step: int) -> dict[str, object]:
    m, n = one.shape
    return {"step": step, "layer": one.layer, "matrix": one.matrix, "m": m, "n": n}


def _numbers(one: Matrix) -> tuple[float, ...]:
    """In the order of COLUMNS. A stable rank is NaN where it is undefined, where its bounds lie
    further apart than RTOL, or where rounding makes up too much of it."""
    operator = one.operator
    assert operator is not None
    size = math.prod(operator.shape) * min(operator.shape[-2:])
    whole = one.matrix == "dW" and (isinstance(operator, LowRank) or size <= DENSE)
    start = torch.Generator().manual_seed(0)  # measured again, the same
    found = summary(
        operator, rtol=RTOL, effective_rank=whole, exact=_on_cpu(operator) and size <= FEW,
        generator=start,
    )  # fmt: skip
    rank = found.stable_rank
    value = float(rank.value) if bool(rank.met) and one.trusted else math.nan
    return (
        value,
        float(rank.lower),
        float(rank.upper),
        float(found.spectral_norm),
        float(found.frobenius_norm),
        float(found.effective_rank),
    )


def _on_cpu(operator: Operator) -> bool:
    return operator.device.type == "cpu"
