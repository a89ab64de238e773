"""Writes edited updates as a PEFT adapter: plain PEFT opens it on the same base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedConfig

from rankscope.linalg import LowRank
from rankscope.train.saved_adapter import save_adapter


def save_edited(
    folder: str | Path,
    updates: Mapping[str, LowRank],
    *,
    base: str | None = None,
    others: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Updates by layer, each with a rank of its own and scale 1, rounded to float32.

    Args:
        others: tensors that are saved in full, by their names in the base model.
        settings: further arguments of ``LoraConfig``.
    """
    ranks = {layer: update.A.shape[-2] for layer, update in updates.items()}
    most = max(ranks.values())
    odd = {layer: r for layer, r in ranks.items() if r != most}
    config = LoraConfig(
        **{"base_model_name_or_path": base} | {k: v for k, v in (settings or {}).items() if v},
        inference_mode=True,
        r=most,
        lora_alpha=most,
        rank_pattern=dict(odd),
        alpha_pattern=dict(odd),
        target_modules=list(updates),
    )
    state: dict[str, Tensor] = dict(others or {})
    for layer, update in updates.items():
        state[f"{layer}.lora_A.weight"] = update.A.float().contiguous()
        state[f"{layer}.lora_B.weight"] = (update.B.double() * update.scale).float().contiguous()
    save_adapter(Path(folder), state, config, PreTrainedConfig())  # no names of classes
