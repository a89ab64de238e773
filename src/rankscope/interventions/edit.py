"""Edits the update of one layer, or of every layer of an adapter. docs/math.md, section 8."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch
from torch import Tensor

from rankscope.interventions.editor import EditedUpdate, Editor
from rankscope.linalg import Dense, LowRank
from rankscope.weights.base_model import open_base_model
from rankscope.weights.checkpoints import open_file, read_json
from rankscope.weights.hub import place
from rankscope.weights.matrix import Matrix, Skipped
from rankscope.weights.source import ADAPTERS, CONFIG, read

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


_PREFIX = "base_model.model."  # of PEFT's names
_KEPT = ("task_type", "modules_to_save", "fan_in_fan_out", "bias", "base_model_name_or_path")


@dataclass(frozen=True)
class EditedAdapter:
    """Attributes:
    updates: dW of each layer after the edit, by its name in the base model, (m, n) as stored there.
    others: tensors that the adapter saves in full, such as its head, by their names in the base.
    settings: those of its adapter_config.json that the edit keeps.
    """

    updates: Mapping[str, EditedUpdate]
    others: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes it as PEFT does; weights of the updates are rounded to float32."""
        from rankscope.interventions.editor import save_edited  # brings PEFT

        transposed = bool(self.settings.get("fan_in_fan_out"))
        updates = {k: u.mT if transposed else u for k, u in self.updates.items()}
        save_edited(folder, updates, others=self.others, settings=self.settings)


def edit_adapter(
    source: str | Path,
    one: Callable[[Editor], EditedUpdate],
    *,
    base: str | Path | None,
    layers: str | None,
) -> EditedAdapter:
    """Opens the adapter in a folder or repository, and edits each layer whose name ``layers``
    finds; the others stay as trained. ``ValueError``, one line, for what can't be edited."""
    chosen, where = _pattern(layers), place(source)
    config = where.find(CONFIG)
    file = next((path for path in map(where.find, ADAPTERS) if path is not None), None)
    if config is None or file is None:
        lacking = CONFIG if config is None else ADAPTERS[0]
        raise ValueError(
            f"{source}: expected a PEFT adapter; found no {lacking}. Of a full fine-tune, "
            "rankscope extract makes an adapter"
        )
    content = read_json(config)
    weights = open_base_model(base) if base is not None else None
    others = _others(file, source)
    updates, edited = {}, 0
    for found in read(source, base=base):
        whole = {found.layer, f"{found.layer}.weight"} & others.keys()
        if whole or (isinstance(found, Matrix) and found.matrix != "dW"):
            continue
        update = _update(found, source)
        W = None
        if weights is not None:
            read_W = weights.weight(found.layer)
            if isinstance(read_W, Skipped):
                raise ValueError(f"{source}: {found.layer} can't be edited: {read_W.why}")
            W = read_W
        editor = Editor(update, W)
        if chosen.search(found.layer):
            updates[found.layer], edited = one(editor), edited + 1
        else:
            updates[found.layer] = editor.scale(1.0)
    if not edited:
        raise ValueError(f"{source}: expected a layer to edit; layers = {layers!r} finds none")
    return EditedAdapter(updates, others, {name: content.get(name) for name in _KEPT})


def _pattern(layers: str | None) -> re.Pattern[str]:
    try:
        return re.compile(layers or "")
    except re.error as error:
        raise ValueError(f"layers: expected a regular expression; {error}") from None


def _update(found: Matrix | Skipped, source: str | Path) -> LowRank | Dense:
    if isinstance(found, Skipped):
        raise ValueError(f"{source}: {found.layer} can't be edited: {found.why}")
    if found.layer.endswith("]"):  # PEFT keeps those of all experts in one tensor
        raise ValueError(f"{source}: {found.layer} can't be edited: factors of a stack of experts")
    operator = found.operator
    if operator is None:
        raise ValueError(f"{source}: {found.layer} can't be edited: {found.note}")
    return operator if isinstance(operator, LowRank) else Dense(operator.to_dense().double())


def _others(file: Path, source: str | Path) -> dict[str, Tensor]:
    tensors, found = open_file(file), {}
    for key in tensors:
        if "lora_embedding" in key:
            raise ValueError(f"{source}: {key}: an adapted embedding can't be edited")
        if "lora_" not in key:
            plain = key.removeprefix(_PREFIX).replace(".modules_to_save.default.", ".")
            found[plain] = tensors.read(key)
    return found
