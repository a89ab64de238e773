"""A PEFT adapter of any method, as a folder or repository holds it: adapter_config.json and one file of tensors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.weights.base_model import BaseModel
from rankscope.weights.checkpoints import read_json
from rankscope.weights.hub import Place
from rankscope.weights.lora_config import not_low_rank
from rankscope.weights.matrix import Reading, Skipped
from rankscope.weights.modules_to_save import saved_matrices
from rankscope.weights.peft_adapter import adapter_matrices, open_adapter
from rankscope.weights.peft_merge import NO_DIFFERENCE, adapted_layers, merged_matrices
from rankscope.weights.tensors import Tensors, open_tensors

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class PeftFiles:
    """What a folder or repository holds of an adapter of any method."""

    path: Path
    content: Mapping[str, Any]
    tensors: Tensors
    neighbours: tuple[str, ...]  # folders inside with adapters of their own

    @property
    def base_model(self) -> str:
        """The base as its configuration names it, quoted for a shell."""
        name = self.content.get("base_model_name_or_path")
        return shlex.quote(name) if isinstance(name, str) and name else "MODEL"

    def revision_of(self, base: str | Path) -> str | None:
        """The revision of ``base`` that the adapter was trained on, as its configuration says."""
        revision = self.content.get("revision")
        same = str(base) == self.content.get("base_model_name_or_path")
        return revision if same and isinstance(revision, str) and revision else None


def find_adapter(where: Place) -> PeftFiles | None:
    """The adapter in a folder or repository; None where there is no adapter_config.json."""
    path = where.find(CONFIG)
    if path is None:
        return None
    content = read_json(path)
    files = [found for name in FILES if (found := where.find(name)) is not None]
    if not files:
        raise ValueError(
            f"{where.source}: expected {' or '.join(FILES)} beside {CONFIG}; found {where.names()}."
        )
    return PeftFiles(path, content, open_tensors(files[0]), tuple(where.folders_with(CONFIG)))


def peft_matrices(
    stored: PeftFiles, source: str, base: BaseModel | None, chosen: re.Pattern[str] | None
) -> Reading:
    """The matrices of an adapter of any method. ``ValueError``, one line, where it can't be measured."""
    peft_type = stored.content.get("peft_type")
    if peft_type == "LORA":
        yield from adapter_matrices(open_adapter(stored.path, stored.content, stored.tensors), base, chosen)
    else:
        kind = str(peft_type)
        if kind in NO_DIFFERENCE or not _known_to_peft(kind):
            why = NO_DIFFERENCE.get(kind, "no method that PEFT knows")
            raise not_low_rank(source, peft_type, f": {why}.")
        if base is None:
            give = f"rankscope measure {shlex.quote(source)} --base {stored.base_model}"
            raise not_low_rank(
                source, peft_type, f". With its base the true W' - W can be measured, so type: {give}"
            )
        layers, others = adapted_layers(stored.tensors, base)
        if layers.keys() == {""}:
            near = next(iter(stored.tensors), "no tensor")
            raise ValueError(
                f"{source}: expected layers of {base.tensors.where}; found {near}: another model?"
            )
        yield from merged_matrices(stored.content, stored.tensors, layers, base, chosen)
        for name in layers[""]:
            yield Skipped(name, "shared by all layers, and part of each W' - W")
        yield from saved_matrices(stored.tensors, others, base, chosen)
    for name in stored.neighbours:
        yield Skipped(name, f"another adapter in this folder: type --subfolder {shlex.quote(name)}")


def _known_to_peft(peft_type: str) -> bool:
    from peft import PeftType

    return peft_type in PeftType.__members__
