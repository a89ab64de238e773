"""Edits of one layer's update dW through its singular value decomposition. docs/math.md, section 8.

An edit keeps the update low rank: it changes the singular values or vectors of the r x r
core, or takes a few singular directions of W + dW away. So K edits of one update are K
adapters, and form one pack.

Letters: m rows, n columns, r rank of the update, p = min(m, n, r), k leading directions.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import torch
from torch import Tensor

from rankscope.linalg import Dense, LowRank, Operator, singular_subspaces

if TYPE_CHECKING:
    from rankscope.interventions.edited_adapter import EditedAdapter

_STEPS = 100  # of the bisection for a level: more than the 53 bits of float64, whatever the start
EDITS = ("scale", "cap", "restore", "top", "without_top", "flat", "random")


class EditedUpdate(LowRank):
    """An edited update: s B A, float64, with s = 1."""

    def save_pretrained(self, folder: str | Path, *, layer: str, base: str | None = None) -> None:
        """Writes it as a PEFT adapter of one layer, ``layer`` its name in the model, ``base`` what
        ``from_pretrained`` takes. Weights are rounded to float32.
        """
        from rankscope.interventions.save import save_edited  # brings PEFT

        save_edited(folder, {layer: self}, base=base)


class _How(TypedDict, total=False):
    scale: float | None
    cap: float | None
    restore: bool
    top: int | None
    without_top: int | None
    flat: int | None
    random: torch.Generator | None


@overload
def edit(
    update: LowRank | Dense, *, base: Tensor | None = None, **how: Unpack[_How]
) -> EditedUpdate: ...


@overload
def edit(
    update: str | Path,
    *,
    base: str | Path | None = None,
    layers: str | None = None,
    **how: Unpack[_How],
) -> EditedAdapter: ...


def edit(
    update: LowRank | Dense | str | Path,
    *,
    base: Tensor | str | Path | None = None,
    layers: str | None = None,
    scale: float | None = None,
    cap: float | None = None,
    restore: bool = False,
    top: int | None = None,
    without_top: int | None = None,
    flat: int | None = None,
    random: torch.Generator | None = None,
) -> EditedUpdate | EditedAdapter:
    """The update dW (m, n), edited in one way. Float64; a Dense update goes through its full SVD.

    Args:
        update: dW; a LowRank with its scale, or a Dense W_FT - W. Or a folder or hub id of a PEFT
            adapter, of which every layer is edited; ``.save_pretrained(folder)`` writes the result
            as an adapter, its head as it was.
        base: W (m, n), which ``cap`` and ``restore`` need; of an adapter, the folder or hub id of
            its base.
        layers: of an adapter, a regular expression: only layers whose name it finds are edited.
        scale: t: t dW.
        cap: c: singular values of dW above c sigma_1(W) are set to that level.
        restore: the singular values of W + dW above a level tau are set to tau, which is chosen so
            that sr(W + dW) = sr(W). The result has rank r + k, k the number of values capped. dW
            itself where sr(W + dW) is not below sr(W): capping can only raise it.
        top: k: the k leading singular directions of dW alone.
        without_top: k: dW without them.
        flat: k: the k leading directions, with equal singular values and dW's Frobenius norm.
        random: draws singular vectors anew (Haar), with dW's singular values.

    Raises:
        ValueError: not exactly one edit; k out of 1 .. p; no base where
            one is needed; a negative c; a base of another shape.
    """
    given: dict[str, Any] = {
        "scale": scale,
        "cap": cap,
        "restore": restore or None,
        "top": top,
        "without_top": without_top,
        "flat": flat,
        "random": random,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        named = ", ".join(asked) or "none"
        raise ValueError(f"edit: expected exactly one of {', '.join(EDITS)}; found {named}")
    ((name, value),) = asked.items()

    def one(editor: Editor) -> EditedUpdate:
        made: EditedUpdate = editor.restore() if name == "restore" else getattr(editor, name)(value)
        return made

    if isinstance(update, str | Path):
        from rankscope.interventions.edited_adapter import edit_adapter  # which edits by this file

        if isinstance(base, Tensor):
            raise ValueError("edit: of an adapter, base is the folder or hub id of its base model")
        return edit_adapter(update, one, base=base, layers=layers)
    if layers is not None or not (base is None or isinstance(base, Tensor)):
        raise ValueError("edit: layers, and a base by name, are for whole adapters")
    return one(Editor(update, base))


class Editor:
    """All edits of one update; its decompositions are made once. Arguments as of ``edit``."""

    def __init__(self, update: Operator, base: Tensor | None = None) -> None:
        if base is not None and base.shape != update.shape:
            raise ValueError(
                f"edit: expected a base of the update's shape {tuple(update.shape)}; found "
                f"{tuple(base.shape)}"
            )
        self.update, self._base = update, base

    @cached_property
    def p(self) -> int:
        """How many singular directions the update has at most."""
        limit = min(self.update.shape[-2:])
        return min(limit, self.update.A.shape[-2]) if isinstance(self.update, LowRank) else limit

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (m, p), sigma (p,), V (n, p) of the update."""
        return singular_subspaces(self.update, self.p)

    @cached_property
    def base_values(self) -> Tensor:
        """The singular values of W."""
        return torch.linalg.svdvals(self._needed("restore").double())

    def scale(self, t: float) -> EditedUpdate:
        B, A = self._factors
        return EditedUpdate(B=B * t, A=A)

    def cap(self, c: float) -> EditedUpdate:
        self._needed("cap")
        if c < 0:
            raise ValueError(f"edit: cap must be at least 0, a share of sigma_1(W); found {c}")
        U, sigma, V = self.svd
        return _product(U, sigma.clamp(max=c * float(self.base_values[0])), V)

    def restore(self) -> EditedUpdate:
        """Caps the leading singular values of W + dW at the level where the stable rank is W's
        again."""
        return self._restored[0]

    @cached_property
    def _restored(self) -> tuple[EditedUpdate, bool]:
        """What ``restore`` makes, and whether it caps anything."""
        W = self._needed("restore").double()
        target = float((self.base_values / self.base_values[0]).square().sum())
        U, sigma, Vh = torch.linalg.svd(W + self.update.to_dense().double(), full_matrices=False)
        level = _level_of(sigma, target=target)
        k = int((sigma > level).sum())
        B, A = self._factors
        if k:
            B = torch.cat([B, -U[:, :k] * (sigma[:k] - level)], dim=1)
            A = torch.cat([A, Vh[:k]], dim=0)
        return EditedUpdate(B=B, A=A), k > 0

    def leaves(self, family: str, level: float) -> bool:
        """Whether this edit leaves dW as it is: scale 1, and caps that no singular value
        exceeds."""
        if family == "restore":
            return not self._restored[1]
        if family == "cap":
            return bool(self.svd[1][0] <= level * self.base_values[0])
        return family == "scale" and level == 1

    def top(self, k: int) -> EditedUpdate:
        U, sigma, V = self._leading("top", k)
        return _product(U, sigma, V)

    def without_top(self, k: int) -> EditedUpdate:
        self._leading("without_top", k)
        U, sigma, V = self.svd
        kept = sigma.clone()
        kept[:k] = 0
        return _product(U, kept, V)

    def flat(self, k: int) -> EditedUpdate:
        U, _, V = self._leading("flat", k)
        equal = torch.linalg.vector_norm(self.svd[1]) / k**0.5
        return _product(U, equal.expand(k), V)

    def random(self, generator: torch.Generator) -> EditedUpdate:
        U, sigma, V = self.svd
        return _product(_haar(len(U), self.p, generator), sigma, _haar(len(V), self.p, generator))

    def _leading(self, name: str, k: int) -> tuple[Tensor, Tensor, Tensor]:
        if not 1 <= k <= self.p:
            raise ValueError(
                f"edit: {name} must lie in 1 .. {self.p}, this update's directions; found {k}"
            )
        U, sigma, V = self.svd
        return U[:, :k], sigma[:k], V[:, :k]

    def _needed(self, name: str) -> Tensor:
        if self._base is None:
            raise ValueError(f"edit: {name} needs base=, the weight W of this layer")
        return self._base

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """B (m, r) with the scale in it, and A (r, n), float64."""
        if isinstance(self.update, LowRank):
            return self.update.B.double() * self.update.scale, self.update.A.double()
        U, sigma, V = self.svd
        return U * sigma, V.mT


def _level_of(sigma: Tensor, *, target: float) -> float:
    """The largest tau with sum min(sigma, tau)^2 / tau^2 >= target; sigma_1 where that holds
    already.

    The quotient falls as tau grows, so bisection finds it.
    """

    def capped(tau: float) -> float:
        return float((sigma / tau).clamp(max=1).square().sum())

    low, high = 0.0, float(sigma[0])
    if capped(high) >= target:
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if capped(middle) >= target else (low, middle)
    return low or high


def _product(U: Tensor, sigma: Tensor, V: Tensor) -> EditedUpdate:
    """U diag(sigma) V^T; both factors carry the square root of sigma, as PEFT's own conversions
    do."""
    root = sigma.sqrt()
    return EditedUpdate(B=U * root, A=(V * root).mT)


def _haar(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns, uniformly distributed (Mezzadri 2007): QR of a Gaussian, signs of R
    undone."""
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(gaussian)
    return Q * R.diagonal().sign()
