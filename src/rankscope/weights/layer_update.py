"""From stored factors to dW, laid out as the base stores its weight.

Letters: m rows (out), n columns (in), r rank. B (m, r), A (r, n), dW = s B A (m, n); a layer that stores (in,
out), such as Conv1D or an embedding, gets dW transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from rankscope.linalg import Dense, LowRank, Operator, RowScaled, row_norms, stable_rank
from rankscope.weights.base_model import as_matrix
from rankscope.weights.matrix import Matrix, Skipped
from rankscope.weights.tensors import finite


@dataclass(frozen=True)
class LayerUpdate:
    """One layer's update. ``stored_in_out``: the base stores (in, out).

    ``magnitude`` (m,) is DoRA's, None for LoRA. ``note`` goes to every row of dW and W + dW.
    """

    layer: str
    B: Tensor  # (m, r)
    A: Tensor  # (r, n)
    scale: float
    stored_in_out: bool
    magnitude: Tensor | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.magnitude is not None and self.magnitude.numel() != self.B.shape[0]:
            raise ValueError(
                f"{self.layer}: expected one DoRA magnitude for each of the {self.B.shape[0]} rows of B; "
                f"found {self.magnitude.numel()}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """dW's shape, as the base stores it."""
        m, n = self.B.shape[0], self.A.shape[1]
        return (n, m) if self.stored_in_out else (m, n)

    @property
    def broken(self) -> str | None:
        """Which factor holds NaN or Inf; None where all numbers are finite."""
        return _not_finite(("B", self.B), ("A", self.A), ("the magnitude", self.magnitude))

    def update(self) -> Operator:
        """s B A."""
        low = LowRank(B=self.B, A=self.A, scale=self.scale)
        return low.mT if self.stored_in_out else low


def update_matrices(
    factors: LayerUpdate, weight: Tensor | Skipped | None, hint: str
) -> Iterator[Matrix | Skipped]:
    """W, dW and W + dW of one layer; dW alone where ``weight`` is None or why there is none.

    ``hint`` says what to type to get the base, for DoRA, whose true update needs it.
    """
    if isinstance(weight, Tensor):
        found = tuple(weight.shape)
        weight = as_matrix(weight)
        if weight.shape != factors.shape:
            why = (
                f"W and W + dW: the base's weight is {found}, the update {factors.shape}: not the same model"
            )
            weight = Skipped(factors.layer, why)
    if factors.magnitude is not None:
        yield from _dora(factors, weight, hint)
    else:
        yield from _lora(factors, weight)


def _lora(factors: LayerUpdate, weight: Tensor | Skipped | None) -> Iterator[Matrix | Skipped]:
    r = factors.A.shape[0]
    broken = factors.broken
    dW = None if broken else factors.update()
    base = _base_matrix(factors, weight)
    if base is not None:
        yield base
    yield Matrix(
        factors.layer, "dW", factors.shape, dW, "factors", r, factors.scale, _notes(broken, factors.note)
    )
    if base is not None:
        effective = base.operator + dW if base.operator is not None and dW is not None else None
        note = _notes(broken, base.note, factors.note)
        yield Matrix(factors.layer, "W+dW", factors.shape, effective, "factors", r, factors.scale, note)
    if isinstance(weight, Skipped):
        yield weight


def _dora(factors: LayerUpdate, weight: Tensor | Skipped | None, hint: str) -> Iterator[Matrix | Skipped]:
    """W' = m / ||W + s B A||_row * (W + s B A), the norm over each output's row (Liu et al. 2024, eq. 5)."""
    broken = factors.broken
    base = _base_matrix(factors, weight)
    direction = "" if broken else f"; its directional part s B A alone has {_said(factors.update())}"
    if base is None:
        why = weight.why if isinstance(weight, Skipped) else f"the base is not given, {hint}"
        yield Skipped(factors.layer, f"DoRA: the true W' - W needs W, and {why}{direction}")
        return
    assert factors.magnitude is not None
    yield base
    note = _notes(broken, base.note, f"DoRA: the true W' - W, of full rank{direction}", factors.note)
    merged: Operator | None = None
    change: Operator | None = None
    if base.operator is not None and broken is None:
        V = base.operator + factors.update()
        V = V.mT if factors.stored_in_out else V  # (m, n)
        norms = row_norms(V)  # (m,)
        if (norms > 0).all():
            merged = RowScaled(V, factors.magnitude.double() / norms)
            merged = merged.mT if factors.stored_in_out else merged
            change = merged - base.operator
        else:
            note = _notes("a row of W + s B A is zero, and DoRA divides by its norm", note)
    r = factors.A.shape[0]
    yield Matrix(factors.layer, "dW", factors.shape, change, "magnitude", r, factors.scale, note)
    yield Matrix(factors.layer, "W+dW", factors.shape, merged, "magnitude", r, factors.scale, note)


def _base_matrix(factors: LayerUpdate, weight: Tensor | Skipped | None) -> Matrix | None:
    if not isinstance(weight, Tensor):
        return None
    broken = _not_finite(("W", weight))
    return Matrix(
        factors.layer, "W", factors.shape, None if broken else Dense(weight), "weights", note=broken
    )


def _not_finite(*named: tuple[str, Tensor | None]) -> str | None:
    bad = [name for name, tensor in named if tensor is not None and not finite(tensor)]
    return f"{' and '.join(bad)} {'hold' if len(bad) > 1 else 'holds'} NaN or Inf" if bad else None


def _notes(*notes: str | None) -> str | None:
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None


def _said(dW: Operator) -> str:
    value = stable_rank(dW).value
    return f"stable rank {value:.4g}" if value == value else "no stable rank (it is zero)"
