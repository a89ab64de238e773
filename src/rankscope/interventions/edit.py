"""One edit of a layer's update, or of every layer of an adapter. docs/math.md, section 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch
from torch import Tensor

from rankscope.interventions.edited_adapter import EditedAdapter, edit_adapter
from rankscope.interventions.editor import EditedUpdate, Editor
from rankscope.linalg import Dense, LowRank

EDITS = ("scale", "cap", "restore", "top", "without_top", "flat", "random")


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
        update: dW; a LowRank with its scale, or a Dense W_FT - W. Or the folder or hub id of a PEFT
            adapter, all of whose layers are edited; ``.save_pretrained(folder)`` writes the result
            as an adapter, with its head unchanged.
        base: W (m, n), needed by ``cap`` and ``restore``; for an adapter, the folder or hub id of
            its base.
        layers: for an adapter, a regular expression: only layers with matching names are edited.
        scale: t: t dW.
        cap: c: singular values of dW above c sigma_1(W) are set to that level.
        restore: singular values of W + dW above a level tau are set to tau, chosen so that
            sr(W + dW) = sr(W). The result has rank r + k, with k values capped. It is dW itself if
            sr(W + dW) is not below sr(W), since capping can only raise it.
        top: k: the k leading singular directions of dW alone.
        without_top: k: dW without them.
        flat: k: the k leading directions, with equal singular values and dW's Frobenius norm.
        random: new random singular vectors (Haar), with dW's singular values.

    Raises:
        ValueError: not exactly one edit; k out of 1 .. p; no base where
            one is needed; a negative c; a base of another shape.
    """
    given: tuple[Any, ...] = (scale, cap, restore or None, top, without_top, flat, random)
    asked = {name: x for name, x in zip(EDITS, given, strict=True) if x is not None}
    if len(asked) != 1:
        named = ", ".join(asked) or "none"
        raise ValueError(f"edit: expected exactly one of {', '.join(EDITS)}; found {named}")
    ((name, value),) = asked.items()

    def one(editor: Editor) -> EditedUpdate:
        made: EditedUpdate = editor.restore() if name == "restore" else getattr(editor, name)(value)
        return made

    if isinstance(update, str | Path):
        if isinstance(base, Tensor):
            raise ValueError("edit: for an adapter, base is the folder or hub id of its base model")
        return edit_adapter(update, one, base=base, layers=layers)
    if layers is not None or not (base is None or isinstance(base, Tensor)):
        raise ValueError("edit: layers, and a base by name, are only for whole adapters")
    return one(Editor(update, base))
