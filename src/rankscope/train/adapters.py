"""A pack of LoRA trials: injection into a Hugging Face model, the updates as operators, saving in PEFT's format.

Letters: K trials, S sites of one shape, m out, n in, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.linalg import Dense, LowRank
from rankscope.study.study_file import Trial
from rankscope.study.task import Task
from rankscope.train.encoder import rewire, shares_prefix
from rankscope.train.model import (
    draw_head,
    load_model,
    modules_to_save,
    sites,
    stream,
    trained_in_full,
    weight_of,
)
from rankscope.train.packed import Noise, PackedLoRA, SharedDropout, buckets, packed_copies
from rankscope.train.rows import Rows
from rankscope.train.saved_adapter import save_adapter
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
        self.model = load_model(model, task)
        draws = [stream(trial.seed, "init") for trial in trials]
        for (
            generator
        ) in draws:  # each trial draws head, then adapters, as if it were alone: equal heads come out
            draw_head(self.model, generator)
        K = len(trials)
        self.heads = {name: packed_copies(layer, K) for name, layer in trained_in_full(self.model).items()}
        self.sites = {
            name: self._adapted(base, draws) for name, base in sites(self.model, first.target_modules).items()
        }
        self.modules_to_save = modules_to_save(self.model)
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
        save_adapter(
            folder,
            trial,
            state,
            base=self.base,
            fan_in_fan_out=any(isinstance(site.base, Conv1D) for site in self.sites.values()),
            modules_to_save=self.modules_to_save,
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
