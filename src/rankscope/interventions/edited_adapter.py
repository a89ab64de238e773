"""Edits every layer of a PEFT adapter in one way, and writes the result as an adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rankscope.interventions.editor import EditedUpdate, Editor
from rankscope.linalg import Dense, LowRank
from rankscope.weights.base_model import open_base_model
from rankscope.weights.checkpoints import open_file, read_json
from rankscope.weights.hub import place
from rankscope.weights.matrix import Matrix, Skipped
from rankscope.weights.source import ADAPTERS, CONFIG, read

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
