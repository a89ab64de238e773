"""LoRA adapters in PEFT's form: its configuration of a trial, its model with several adapters, and
the files that plain PEFT opens on the same base, heads included."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peft import LoraConfig, PeftModelForCausalLM, PeftModelForSequenceClassification, TaskType
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from rankscope.study.trial import ALL_LINEAR, CHANGES_BASE, Trial
from rankscope.train.starts import Pair, to_save

ADAPTER = "default"  # PEFT's name for the only adapter
MAGNITUDE = "lora_magnitude_vector"  # DoRA's; its file leaves out ".weight"


def lora_config(
    trial: Trial,
    *,
    base: str,
    sites: Sequence[str],
    fan_in_fan_out: bool,
    modules_to_save: Sequence[str],
    is_language: bool = False,
    converted: bool = False,
) -> LoraConfig:
    """PEFT's configuration of this trial.

    Args:
        base: what ``from_pretrained`` was called with.
        sites: names of the adapted layers, which stand for "all-linear": PEFT would also adapt what
            it finds in some heads.
        fan_in_fan_out: whether adapted layers store (in, out), as GPT-2's Conv1D does.
        modules_to_save: ``train.model.modules_to_save``.
        converted: as it is saved: with rank 2r if its start changed the base (``starts.to_save``).
    """
    assert trial.rank is not None
    assert trial.lora_alpha is not None
    times = 2 if converted and trial.init_lora_weights in CHANGES_BASE else 1
    rank, pattern = trial.rank * times, {k: r * times for k, r in trial.rank_pattern.items()}
    # PEFT divides by r, or by its root
    alpha = {
        "alpha": trial.lora_alpha * rank,
        "alpha/sqrt(r)": trial.lora_alpha * math.sqrt(rank / trial.rank),
    }.get(trial.scaling or "", trial.lora_alpha * rank / trial.rank)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM if is_language else TaskType.SEQ_CLS,
        inference_mode=True,
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=_plain(alpha),
        rank_pattern=pattern,
        alpha_pattern={
            layer: _plain(trial.lora_alpha * r)
            for layer, r in pattern.items()
            if trial.scaling == "alpha"
        },
        use_dora=trial.use_dora,
        use_rslora=trial.scaling == "alpha/sqrt(r)",
        lora_dropout=trial.lora_dropout,
        target_modules=list(
            sites if trial.target_modules == [ALL_LINEAR] else trial.target_modules
        ),
        fan_in_fan_out=fan_in_fan_out,
        modules_to_save=list(modules_to_save) or None,
    )


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def adapted(model: Any, configs: Sequence[LoraConfig], names: Sequence[str] = (ADAPTER,)) -> Any:
    """PEFT's model with one adapter per configuration. PEFT writes into configurations, so it gets
    copies."""
    configs = [copy.deepcopy(config) for config in configs]
    with warnings.catch_warnings():  # PEFT's advice on several adapters in one model
        warnings.simplefilter("ignore")
        kind = (
            PeftModelForCausalLM
            if configs[0].task_type == TaskType.CAUSAL_LM
            else PeftModelForSequenceClassification
        )
        found = kind(model, configs[0], adapter_name=names[0])
        for name, config in zip(names[1:], configs[1:], strict=True):
            found.add_adapter(name, config)
    return found


def trained_weights(model: Any, adapter: str) -> dict[str, nn.Parameter]:
    """Weights of one adapter and of the modules saved with it, by their names in the model."""
    found = {}
    for name, parameter in model.named_parameters():
        plain = name.replace(f".modules_to_save.{adapter}.", ".").replace(f".{adapter}.", ".")
        if plain != name and ".original_module." not in name:
            found[plain.removeprefix("base_model.model.")] = parameter.requires_grad_()
    return found


def leave(site: nn.Module, W: Tensor) -> None:
    """Replaces a frozen layer's weight by W (m, n); layers that shared it keep theirs."""
    W = W.mT.contiguous() if isinstance(site, Conv1D) else W
    site.weight = nn.Parameter(W, requires_grad=False)


def save_adapter(
    folder: Path,
    state: Mapping[str, Tensor],
    config: LoraConfig,
    model: PreTrainedConfig,
    starts: Mapping[str, Pair] = MappingProxyType({}),
) -> None:
    """Writes ``adapter_model.safetensors`` and ``adapter_config.json``; and where the classes have
    names the ``config.json`` of a model with such a head, ``model``.

    Args:
        state: names in the base model -> tensors: ``<layer>.lora_A.weight`` (r, n),
            ``<layer>.lora_B.weight`` (m, r), and every parameter of the modules trained in full.
        starts: what each layer's start took out of the base, if it did.
    """
    state = dict(state)
    for layer, start in starts.items():
        B, A = (f"{layer}.lora_{factor}.weight" for factor in "BA")
        state[B], state[A] = to_save(state[B], state[A], start)
    if any(MAGNITUDE in name for name in state):
        state = {
            name.removesuffix(".weight") if MAGNITUDE in name else name: tensor
            for name, tensor in state.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            f"base_model.model.{name}": tensor.detach().cpu().contiguous()
            for name, tensor in state.items()
        },
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    if (
        config.target_modules is not None
    ):  # PEFT keeps a set, and would write it in the order of hashes
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)
    if config.task_type == TaskType.SEQ_CLS and set(model.id2label.values()) != {
        f"LABEL_{i}" for i in range(len(model.id2label))
    }:
        model.save_pretrained(folder)
