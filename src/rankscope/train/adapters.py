"""A pack of LoRA trials: injection into a Hugging Face model, the updates as operators, saving in PEFT's format.

Letters: K trials, S sites of one shape, m out, n in, r the pack's largest rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankscope.linalg import Dense, LowRank
from rankscope.study.plan import Trial
from rankscope.study.tasks import Task
from rankscope.train.model import draw_head, heads, load_model, sites, stream, weight_of
from rankscope.train.packed import Noise, PackedLinear, PackedLoRA, SharedDropout
from rankscope.train.updates import Updates


class AdapterPack:
    """K LoRA trials over one frozen base; ``model`` maps inputs (K*B, T) to logits (K*B, C)."""

    def __init__(self, trials: Sequence[Trial], *, model: str, task: Task, device: torch.device) -> None:
        first = trials[0]
        self.trials, self.base = list(trials), model
        self.noise = Noise(len(trials), stream(first.seed, "dropout"))
        self.model = load_model(model, task).requires_grad_(False)
        draws = [stream(trial.seed, "init") for trial in trials]
        for (
            generator
        ) in draws:  # each trial draws head, then adapters, as if it were alone; the heads come out equal
            draw_head(self.model, generator)
        K = len(trials)
        self.heads = {
            name: PackedLinear(
                weight=_copies(layer.weight, K), bias=None if layer.bias is None else _copies(layer.bias, K)
            )
            for name, layer in heads(self.model).items()
        }
        self.sites = {
            name: self._adapted(base, draws) for name, base in sites(self.model, first.target_modules).items()
        }
        share_dropout(self.model, self.noise)
        for name, module in [*self.sites.items(), *self.heads.items()]:
            self.model.set_submodule(name, module)
        self.model.to(device)
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.decays = [not n.endswith("bias") for n, _ in named]

    def _adapted(self, base: nn.Module, draws: Sequence[torch.Generator]) -> PackedLoRA:
        """B = 0; A uniform in +-1/sqrt(n), which is Kaiming-uniform with a = sqrt 5: PEFT's initialisation."""
        m, n = weight_of(base).shape
        K, r = len(self.trials), max(trial.rank or 0 for trial in self.trials)
        A = torch.zeros(K, r, n)
        for k, (trial, generator) in enumerate(zip(self.trials, draws, strict=True)):
            A[k, : trial.rank].uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=generator)
        scale = torch.tensor([trial.scale for trial in self.trials])
        return PackedLoRA(
            base,
            B=torch.zeros(K, m, r),
            A=A,
            scale=scale,
            dropout=self.trials[0].lora_dropout,
            noise=self.noise,
        )

    def updates(self) -> Iterator[Updates]:
        """W, dW and W + dW of all sites, those of one shape together."""
        shapes: dict[torch.Size, list[str]] = {}
        for name, site in self.sites.items():
            shapes.setdefault(weight_of(site.base).shape, []).append(name)
        for names in shapes.values():
            members = [self.sites[name] for name in names]
            W = torch.stack([weight_of(site.base) for site in members])  # (S, m, n)
            B = torch.stack([site.B.detach() for site in members])  # (S, K, m, r)
            A = torch.stack([site.A.detach() for site in members])
            dW = LowRank(B=B, A=A, scale=members[0].scale)
            yield Updates(names, W, dW, Dense(W[:, None]) + dW)

    def save(self, k: int, parameters: Sequence[Tensor], folder: Path) -> None:
        """Trial ``k`` with these values of ``self.parameters``, as a PEFT adapter in ``folder``."""
        trial, values = self.trials[k], dict(zip(map(id, self.parameters), parameters, strict=True))
        state: dict[str, Tensor] = {}
        for name, site in self.sites.items():
            state[f"{name}.lora_A.weight"] = values[id(site.A)][k, : trial.rank]
            state[f"{name}.lora_B.weight"] = values[id(site.B)][k, :, : trial.rank]
        for name, head in self.heads.items():
            state |= {f"{name}.{key}": values[id(p)][k] for key, p in head.named_parameters()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {f"base_model.model.{key}": value.contiguous().cpu() for key, value in state.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        self._config(trial).save_pretrained(folder)

    def _config(self, trial: Trial) -> LoraConfig:
        assert trial.rank is not None
        assert trial.lora_alpha is not None
        alpha = trial.lora_alpha * (trial.rank if trial.scaling == "alpha" else 1)  # PEFT divides by r
        return LoraConfig(
            task_type=TaskType.SEQ_CLS,
            inference_mode=True,
            base_model_name_or_path=self.base,
            r=trial.rank,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            use_rslora=trial.scaling == "alpha/sqrt(r)",
            lora_dropout=trial.lora_dropout,
            target_modules=list(trial.target_modules),
            fan_in_fan_out=any(isinstance(site.base, Conv1D) for site in self.sites.values()),
            modules_to_save=sorted({name.split(".")[0] for name in self.heads}),
        )


def share_dropout(model: nn.Module, noise: Noise) -> None:
    """Every dropout of the model, those inside attention too, draws from ``noise``."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, SharedDropout(module.p, noise))
        else:
            module.noise = noise  # attention.py reads it from the module that asks


def _copies(parameter: Tensor, K: int) -> Tensor:
    return parameter.detach().expand(K, *parameter.shape).clone()
