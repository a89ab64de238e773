"""A pack of LoRA trials: injection into a Hugging Face model, the updates as operators, saving in PEFT's format.

Letters: K trials, S sites of one shape, m out, n in, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.linalg import Dense, LowRank
from rankscope.study.study_file import Trial
from rankscope.study.task import Task
from rankscope.train.encoder import rewire, shares_prefix
from rankscope.train.model import draw_head, heads, load_model, sites, stream, weight_of
from rankscope.train.packed import Noise, PackedLinear, PackedLoRA, SharedDropout, buckets
from rankscope.train.rows import Rows
from rankscope.train.updates import Updates


class AdapterPack:
    """K LoRA trials over one frozen base."""

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        model: str,
        task: Task,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        first = trials[0]
        self.trials, self.base = list(trials), model
        self.noise = Noise(len(trials), stream(first.seed, "dropout", device))
        self.model = load_model(model, task).requires_grad_(False)
        draws = [stream(trial.seed, "init") for trial in trials]
        for (
            generator
        ) in draws:  # each trial draws head, then adapters, as if it were alone: equal heads come out
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
        self.repeats = share(self.model, self.noise)
        for name, module in [*self.sites.items(), *self.heads.items()]:
            self.model.set_submodule(name, module)
        self.model.to(device=device, dtype=dtype)
        self.rows = self._rows()

    def _adapted(self, base: nn.Module, draws: Sequence[torch.Generator]) -> PackedLoRA:
        """B = 0; A uniform in +-1/sqrt(n), which is Kaiming-uniform with a = sqrt 5: PEFT's initialisation."""
        m, n = weight_of(base).shape
        ranks = [trial.rank or 0 for trial in self.trials]
        slots = buckets(ranks)
        largest = [max(ranks[slot]) for slot in slots]
        As = [torch.zeros(slot.stop - slot.start, r, n) for slot, r in zip(slots, largest, strict=True)]
        padded = [A for As_ in As for A in As_]
        for A, r, generator in zip(padded, ranks, draws, strict=True):
            A[:r].uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=generator)
        return PackedLoRA(
            base,
            B=[torch.zeros(len(A), m, A.shape[1]) for A in As],
            A=As,
            scale=torch.tensor([trial.scale for trial in self.trials], dtype=torch.float64),
            slots=slots,
            dropout=self.trials[0].lora_dropout,
            noise=self.noise,
        )

    def _rows(self) -> list[Rows]:
        """The heads of all trials, then the adapters, bucket by bucket. No decay for biases, as in the Trainer."""
        trained = [p for head in self.heads.values() for p in head.parameters()]
        result = [Rows(trained, decays=[p.ndim == 3 for p in trained], slots=slice(0, len(self.trials)))]
        for i, slot in enumerate(next(iter(self.sites.values())).slots):
            factors = [p for site in self.sites.values() for p in (site.A[i], site.B[i])]
            result.append(Rows(factors, decays=[True] * len(factors), slots=slot))
        return result

    def updates(self) -> Iterator[Updates]:
        """W, dW and W + dW of all sites, those of one shape together."""
        shapes: dict[torch.Size, list[str]] = {}
        for name, site in self.sites.items():
            shapes.setdefault(weight_of(site.base).shape, []).append(name)
        for names in shapes.values():
            members = [self.sites[name] for name in names]
            W = torch.stack([weight_of(site.base) for site in members])  # (S, m, n)
            for i, slot in enumerate(members[0].slots):
                B = torch.stack([site.B[i].detach() for site in members])  # (S, k, m, r)
                A = torch.stack([site.A[i].detach() for site in members])
                dW = LowRank(B=B, A=A, scale=members[0].scale[slot].flatten())
                yield Updates(names, slot, W, dW, Dense(W[:, None]) + dW)

    def save(self, k: int, buffers: Sequence[Tensor], folder: Path) -> None:
        """Trial ``k`` with these buffers in place of its rows' values, as a PEFT adapter in ``folder``."""
        trial = self.trials[k]
        values = {
            id(p): view
            for group, buffer in zip(self.rows, buffers, strict=True)
            for p, view in zip(group.parameters, group.views(buffer), strict=True)
        }
        state: dict[str, Tensor] = {}
        for name, site in self.sites.items():
            bucket, place = site.bucket(k)
            state[f"{name}.lora_A.weight"] = values[id(site.A[bucket])][place, : trial.rank]
            state[f"{name}.lora_B.weight"] = values[id(site.B[bucket])][place, :, : trial.rank]
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


def share(model: PreTrainedModel, noise: Noise) -> int:
    """All trials of a pack draw one dropout mask and share what they can. -> how often to repeat an input (B, T)

    Every dropout of the model draws from ``noise``, those inside attention too.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, SharedDropout(module.p, noise))
        else:
            module.noise = noise  # attention.py reads it from the module that asks
    if not shares_prefix(model):
        return noise.trials
    rewire(model, noise)
    return 1


def _copies(parameter: Tensor, K: int) -> Tensor:
    return parameter.detach().expand(K, *parameter.shape).clone()
