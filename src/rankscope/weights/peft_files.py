"""A PEFT adapter of any method, as a folder or repository holds it:
adapter_config.json and one file of tensors."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.weights.base_model import BaseModel
from rankscope.weights.lora_config import not_low_rank
from rankscope.weights.matrix import Layer, skipped
from rankscope.weights.modules_to_save import saved_layers
from rankscope.weights.peft_adapter import adapter_layers, open_adapter
from rankscope.weights.peft_merge import NO_DIFFERENCE, adapted_layers, merged_layers
from rankscope.weights.tensors import Tensors


@dataclass(frozen=True)
class PeftFiles:
    """What a folder or repository holds of an adapter of any method."""

    path: Path
    content: Mapping[str, Any]
    tensors: Tensors

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


def peft_layers(stored: PeftFiles, source: str, base: BaseModel | None) -> Iterator[Layer]:
    """The layers of an adapter of any method. ``ValueError``, one line, where it can't be
    measured."""
    peft_type = stored.content.get("peft_type")
    if peft_type == "LORA":
        yield from adapter_layers(open_adapter(stored.path, stored.content, stored.tensors), base)
        return
    kind = str(peft_type)[:40]
    if kind in NO_DIFFERENCE or not _known_to_peft(kind):
        why = NO_DIFFERENCE.get(kind, "no method that PEFT knows")
        raise not_low_rank(source, kind, f": {why}.")
    if base is None:
        give = f"rankscope measure {shlex.quote(source)} --base {stored.base_model}"
        raise not_low_rank(
            source, kind, f". With its base the true W' - W can be measured, so type: {give}"
        )
    layers, others = adapted_layers(stored.tensors, base)
    if layers.keys() == {""}:
        base.check_same_model([*stored.tensors], source, matched=False)
    yield from merged_layers(stored.content, stored.tensors, layers, base)
    for name in layers[""]:
        yield skipped(name, "shared by all layers, and part of each W' - W")
    yield from saved_layers(stored.tensors, others, base)


def _known_to_peft(peft_type: str) -> bool:
    from peft import PeftType

    return peft_type in PeftType.__members__
