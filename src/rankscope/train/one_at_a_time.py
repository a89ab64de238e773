"""One LoRA trial through PEFT's own layers, on the stock model: where trials of a pack can't be
kept apart.

Letters: S sites of one shape, m out, n in, r rank.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankscope.linalg import Dense, LowRank
from rankscope.study.tasks import Task
from rankscope.study.trial import Trial
from rankscope.train.adapters import draw_factors
from rankscope.train.loading import load_model
from rankscope.train.model import draw_head, modules_to_save, sites, stream, weight_of
from rankscope.train.optimizer import FlatParams, kind_of
from rankscope.train.packed import DropoutMasks
from rankscope.train.saved_adapter import lora_config, save_adapter
from rankscope.train.spectra import Updates

ADAPTER = "default"  # PEFT's name for the only adapter


def _factor_of(name: str) -> str | None:
    return next((factor for factor in "AB" if name.endswith(f".lora_{factor}.weight")), None)


class PeftTrial:
    """A pack with K = 1. It starts from the weights that the trial starts from in an
    ``AdapterPack``."""

    repeats = 1
    own_head = True
    takes_dropouts = False

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        model: str,
        task: Task,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        (trial,) = trials
        self.trials = [trial]
        self.masks = DropoutMasks(1, stream(trial.seed, "dropout").initial_seed(), device)
        loaded, generator = load_model(model, task), stream(trial.seed, "init")
        draw_head(loaded, generator)
        self.sites: dict[str, nn.Module] = sites(loaded, trial.target_modules)
        conv = any(isinstance(site, Conv1D) for site in self.sites.values())
        saved = modules_to_save(loaded)
        self.config = lora_config(
            trial,
            base=model,
            sites=list(self.sites),
            fan_in_fan_out=conv,
            modules_to_save=saved,
            is_language=task.is_language,
        )
        self.model = adapted(loaded, [self.config])
        self.trained = trained_weights(self.model, ADAPTER)
        for name in self.sites:
            B, A = (self.trained[f"{name}.lora_{factor}.weight"] for factor in "BA")
            draw_factors(B, A, trial.init_lora_weights, generator)
        self.model.to(device=device, dtype=dtype)
        parameters = list(self.trained.values())
        self.params = [
            FlatParams(
                parameters,
                decays=[p.ndim > 1 for p in parameters],
                members=slice(0, 1),
                kinds=[
                    kind_of(trial, factor=_factor_of(name), is_vector=p.ndim == 1)
                    for name, p in self.trained.items()
                ],
            )
        ]

    def updates(self) -> Iterator[Updates]:
        """W, dW and W + dW of all sites, those of one shape together."""
        shapes: dict[torch.Size, list[str]] = {}
        for name, site in self.sites.items():
            shapes.setdefault(weight_of(site).shape, []).append(name)
        for names in shapes.values():
            W = torch.stack([weight_of(self.sites[name]) for name in names])  # (S, m, n)
            B, A = (self._factors(names, f"lora_{factor}") for factor in "BA")
            scale = torch.tensor([self.trials[0].scale], dtype=torch.float64, device=W.device)
            dW = LowRank(B=B, A=A, scale=scale)
            yield Updates(names, slice(0, 1), W, dW, Dense(W[:, None]) + dW)

    def _factors(self, names: Sequence[str], factor: str) -> Tensor:
        """(S, 1, m, r) or (S, 1, r, n)"""
        found = [self.trained[f"{name}.{factor}.weight"].detach() for name in names]
        return torch.stack(found)[:, None]

    def save(self, k: int, buffers: Sequence[Tensor], folder: Path) -> None:
        """The trial with this buffer in place of its row's values, as a PEFT adapter in
        ``folder``."""
        assert k == 0
        (group,), (buffer,) = self.params, buffers
        values = {id(p): v for p, v in zip(group.parameters, group.views(buffer), strict=True)}
        state = {name: values[id(p)] for name, p in self.trained.items()}
        save_adapter(folder, state, self.config, self.model.config)


def adapted(
    model: Any, configs: Sequence[peft.LoraConfig], names: Sequence[str] = (ADAPTER,)
) -> Any:
    """PEFT's model with one adapter per configuration. PEFT writes into configurations, so it gets
    copies."""
    configs = [copy.deepcopy(config) for config in configs]
    with warnings.catch_warnings():  # PEFT's advice on several adapters in one model
        warnings.simplefilter("ignore")
        kind = (
            peft.PeftModelForCausalLM
            if configs[0].task_type == peft.TaskType.CAUSAL_LM
            else peft.PeftModelForSequenceClassification
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
