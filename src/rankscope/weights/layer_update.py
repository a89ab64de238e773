"""One layer's stored update -> W, dW and W + dW, in the layout of the base's weight.

Letters: m rows (out), n columns (in), r rank. B (m, r), A (r, n), dW = s B A (m, n); a layer that
stores (in, out), such as Conv1D or an embedding, gets dW transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from rankscope.linalg import Dense, LowRank, Operator, Scaled, row_norms, stable_rank
from rankscope.weights.matrix import Matrix, Skipped
from rankscope.weights.tensors import as_matrix, finite


@dataclass(frozen=True)
class LayerUpdate:
    """One layer's update. ``stored_in_out``: the base stores (in, out). If ``A`` is None, B is
    dW / s.

    ``magnitude`` is DoRA's, None for LoRA: one for each row of W + dW (m,), or,
    ``by_column``, for each input (a convolution's column has one kernel's entries). ``note``
    goes to every row of dW and W + dW.
    """

    layer: str
    B: Tensor  # (m, r)
    A: Tensor | None  # (r, n)
    scale: float | None
    stored_in_out: bool
    magnitude: Tensor | None = None
    note: str | None = None
    by_column: bool = False
    read_from: str = "factors"

    def __post_init__(self) -> None:
        if self.magnitude is None:
            return
        m, n = self._shape
        count = self.magnitude.numel()
        if (n % count if self.by_column else count != m) or count == 0:
            kind = f"columns, of which there are {n}" if self.by_column else f"{m} rows of B"
            raise ValueError(
                f"{self.layer}: expected one DoRA magnitude for each of the {kind}; found {count}."
            )

    @property
    def _shape(self) -> tuple[int, int]:
        return self.B.shape[0], (self.B if self.A is None else self.A).shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of dW in the base's layout."""
        m, n = self._shape
        return (n, m) if self.stored_in_out else (m, n)

    @property
    def r(self) -> int | None:
        """The rank of B A; None if dW is stored in full."""
        return None if self.A is None else self.A.shape[0]

    @property
    def broken(self) -> str | None:
        """Which factor holds NaN or Inf; None if all values are finite."""
        first = "dW" if self.A is None else "B"
        return _not_finite((first, self.B), ("A", self.A), ("the magnitude", self.magnitude))

    def update(self) -> Operator:
        """s B A."""
        scale = 1.0 if self.scale is None else self.scale
        if self.A is not None:
            low = LowRank(B=self.B, A=self.A, scale=scale)
            return low.mT if self.stored_in_out else low
        whole = self.B if scale == 1 else self.B.double() * scale
        return Dense(whole.mT if self.stored_in_out else whole)

    def matrix(
        self, kind: str, operator: Operator | None, note: str | None, read_from: str
    ) -> Matrix:
        """dW or W + dW."""
        return Matrix(self.layer, kind, self.shape, operator, read_from, self.r, self.scale, note)  # type: ignore[arg-type]


def update_matrices(
    update: LayerUpdate, weight: Tensor | Skipped | None, hint: str
) -> Iterator[Matrix | Skipped]:
    """W, dW and W + dW of one layer; only dW if ``weight`` is None or Skipped.

    ``hint``: what to type to get the base, which DoRA's true update needs.
    """
    if isinstance(weight, Tensor):
        found = tuple(weight.shape)
        weight = as_matrix(weight)
        if weight.shape != update.shape:
            why = (
                f"W and W + dW: the base's weight is {found}, the update {update.shape}: not "
                "the same model"
            )
            weight = Skipped(update.layer, why)
    if update.magnitude is not None:
        yield from _dora(update, weight, hint)
    else:
        yield from _lora(update, weight)


def _lora(update: LayerUpdate, weight: Tensor | Skipped | None) -> Iterator[Matrix | Skipped]:
    broken = update.broken
    dW = None if broken else update.update()
    base = _base_matrix(update, weight)
    if base is not None:
        yield base
    yield update.matrix("dW", dW, _notes(broken, update.note), update.read_from)
    if base is not None:
        effective = base.operator + dW if base.operator is not None and dW is not None else None
        yield update.matrix(
            "W+dW", effective, _notes(broken, base.note, update.note), update.read_from
        )
    if isinstance(weight, Skipped):
        yield weight


def _dora(
    update: LayerUpdate, weight: Tensor | Skipped | None, hint: str
) -> Iterator[Matrix | Skipped]:
    """W' = m / ||W + s B A||_row * (W + s B A), the norm over each output's row (Liu et al. 2024,
    eq. 5).

    Some LyCORIS variants take the norm over each input's column instead.
    """
    broken = update.broken
    base = _base_matrix(update, weight)
    direction = "" if broken else f"; its directional part s B A alone has {_said(update.update())}"
    if base is None:
        why = weight.why if isinstance(weight, Skipped) else f"the base is not given, {hint}"
        yield Skipped(update.layer, f"DoRA: the true W' - W needs W, and {why}{direction}")
        return
    assert update.magnitude is not None
    yield base
    note = _notes(broken, base.note, f"DoRA: the true W' - W, of full rank{direction}", update.note)
    merged: Operator | None = None
    change: Operator | None = None
    if base.operator is not None and broken is None:
        lies = update.stored_in_out != update.by_column
        V = base.operator + update.update()
        V = V.mT if lies else V  # a row for each norm; for a convolution's inputs, k k rows
        count = update.magnitude.numel()
        norms = row_norms(V).reshape(count, -1).square().sum(1).sqrt()
        if (norms > 0).all():
            factor = (update.magnitude.double() / norms).repeat_interleave(V.shape[0] // count)
            merged = Scaled(V, factor)
            merged = merged.mT if lies else merged
            change = merged - base.operator
        else:
            line = "column" if update.by_column else "row"
            note = _notes(f"a {line} of W + s B A is zero, and DoRA divides by its norm", note)
    yield update.matrix("dW", change, note, "magnitude")
    yield update.matrix("W+dW", merged, note, "magnitude")


def _base_matrix(update: LayerUpdate, weight: Tensor | Skipped | None) -> Matrix | None:
    if not isinstance(weight, Tensor):
        return None
    broken = _not_finite(("W", weight))
    return Matrix(
        update.layer, "W", update.shape, None if broken else Dense(weight), "weights", note=broken
    )


def _not_finite(*named: tuple[str, Tensor | None]) -> str | None:
    bad = [name for name, tensor in named if tensor is not None and not finite(tensor)]
    return f"{' and '.join(bad)} {'hold' if len(bad) > 1 else 'holds'} NaN or Inf" if bad else None


def _notes(*notes: str | None) -> str | None:
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None


def _said(dW: Operator) -> str:
    value = stable_rank(dW).value
    return f"stable rank {value:.4g}" if value == value else "no stable rank (it is zero)"
