"""A pack of LoRA trials: injection into a Hugging Face model, the updates as operators, saving in
PEFT's format.

Letters: K trials, S sites of one shape, m out, n in, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.linalg import LowRank
from rankscope.study.tasks import Task
from rankscope.study.trial import Trial
from rankscope.train.encoder import is_patchable, patch_encoder
from rankscope.train.loading import load_model, sharing_weights
from rankscope.train.model import (
    draw_head,
    modules_to_save,
    sites,
    stream,
    trained_in_full,
    weight_of,
)
from rankscope.train.optimizer import FlatParams, kind_of
from rankscope.train.packed import (
    DropoutMasks,
    NotIsolated,
    PackedLoRA,
    packed_copies,
    rank_buckets,
)
from rankscope.train.packed_dora import PackedDoRA
from rankscope.train.peft_adapter import MAGNITUDE, lora_config, save_adapter
from rankscope.train.spectra import Updates, measurable, updated
from rankscope.train.starts import Pair, against_pretrained, draw_factors, leading


class AdapterPack:
    """K LoRA trials over one frozen base.

    Args:
        model: folder or hub id, as the saved adapters name their base.
        loaded: that model, if it is at hand; it is changed.

    ``stock`` is the unchanged model over the same frozen weights, for ``isolation``.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        model: str,
        task: Task,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        loaded: PreTrainedModel | None = None,
    ) -> None:
        first, K = trials[0], len(trials)
        if first.use_dora and first.lora_dropout > 0:
            raise NotIsolated("with lora_dropout, DoRA applies W to the dropped-out input as well")
        self.trials, self.base = list(trials), model
        self.masks = DropoutMasks(K, stream(first.seed, "dropout").initial_seed(), device)
        self.model = load_model(model, task) if loaded is None else loaded
        self.stock = sharing_weights(self.model)
        draws = [stream(trial.seed, "init") for trial in trials]
        for generator in draws:  # each draws its head, then its adapters, as if it were alone
            draw_head(self.model, generator)
        self.heads = {
            name: packed_copies(layer, self.masks)
            for name, layer in trained_in_full(self.model).items()
        }
        self.modules_to_save = modules_to_save(self.model)
        self.own_head, self.is_language = False, task.is_language
        found = sites(self.model, first.target_modules)
        self.sites = {name: self._adapted(name, base, draws) for name, base in found.items()}
        self.takes_dropouts = not is_patchable(self.model)
        self.repeats = K if self.takes_dropouts else 1
        if not self.takes_dropouts:
            patch_encoder(self.model, self.masks)
        for name, module in [*self.sites.items(), *self.heads.items()]:
            self.model.set_submodule(name, module)
        self.model.to(device=device, dtype=dtype)
        self.params = self._flat_params()

    def _adapted(self, name: str, base: nn.Module, draws: Sequence[torch.Generator]) -> PackedLoRA:
        """As ``draw_factors`` has it. Buckets are the same for all sites."""
        m, n = weight_of(base).shape
        cuts = rank_buckets([trial.largest_rank for trial in self.trials])
        trials = [trial.at(name) for trial in self.trials]
        ranks = [trial.rank or 0 for trial in trials]
        largest = [max(ranks[bucket]) for bucket in cuts]
        As = [
            torch.zeros(bucket.stop - bucket.start, r, n)
            for bucket, r in zip(cuts, largest, strict=True)
        ]
        Bs = [torch.zeros(len(A), m, A.shape[1]) for A in As]
        padded = [
            pair for Bs_, As_ in zip(Bs, As, strict=True) for pair in zip(Bs_, As_, strict=True)
        ]
        parts = leading(weight_of(base), self.trials[0].init_lora_weights)
        for (B, A), trial, generator in zip(padded, trials, draws, strict=True):
            B, A = B[:, : trial.rank], A[: trial.rank]
            if parts is None:
                draw_factors(B, A, trial.init_lora_weights, generator)
            else:
                for factor, value in zip((B, A), parts.cut(trial), strict=True):
                    factor.copy_(value)
        settings: dict[str, Any] = {
            "B": Bs,
            "A": As,
            "scale": torch.tensor([trial.scale for trial in trials], dtype=torch.float64),
            "buckets": cuts,
            "dropout": self.trials[0].lora_dropout,
            "masks": self.masks,
        }
        if parts is not None:
            settings["start"] = [(B.clone(), A.clone()) for B, A in zip(Bs, As, strict=True)]
        if not self.trials[0].use_dora:
            return PackedLoRA(base, **settings)
        norms = torch.linalg.vector_norm(weight_of(base), dim=1)  # B A starts at zero, or at B0 A0
        return PackedDoRA(base, magnitude=[norms.repeat(len(B), 1) for B in Bs], **settings)

    def _flat_params(self) -> list[FlatParams]:
        """The heads of all trials, if they have any, then the adapters, bucket by bucket. No decay
        for biases, as in the Trainer."""
        first = self.trials[0]
        trained = [p for head in self.heads.values() for p in head.parameters()]
        result = [
            FlatParams(
                trained,
                decays=[p.ndim == 3 for p in trained],
                members=slice(0, len(self.trials)),
                kinds=[kind_of(first, factor=None, is_vector=p.ndim == 2) for p in trained],
            )
            for _ in range(bool(trained))
        ]
        for i, bucket in enumerate(next(iter(self.sites.values())).buckets):
            factors = [p for site in self.sites.values() for p in (site.A[i], site.B[i])]
            kinds = [kind_of(first, factor=factor) for _ in self.sites for factor in "AB"]
            for site in self.sites.values():
                if isinstance(site, PackedDoRA):
                    factors.append(site.magnitude[i])
                    kinds.append(kind_of(first, factor=None, is_vector=True))
            decays = [True] * len(factors)  # of magnitudes, too, as the Trainer has it
            result.append(FlatParams(factors, decays=decays, members=bucket, kinds=kinds))
        return result

    def updates(self) -> Iterator[Updates]:
        """W, dW and W + dW of all sites, those of one shape together; of DoRA, whose dW are formed,
        one by one."""
        shapes: dict[Any, list[str]] = {}
        for name, site in self.sites.items():
            alike = (weight_of(site.base).shape, *(A.shape for A in site.A))
            key = name if isinstance(site, PackedDoRA) else alike
            shapes.setdefault(key, []).append(name)
        for names in shapes.values():
            layers = [self.sites[name] for name in names]
            W = measurable(torch.stack([weight_of(site.base) for site in layers]))  # (S, m, n)
            for i, bucket in enumerate(layers[0].buckets):
                factors = [
                    against_pretrained(site.B[i].detach(), site.A[i].detach(), site.starts()[i])
                    for site in layers
                ]
                B, A = map(torch.stack, zip(*factors, strict=True))  # (S, k, m, r), (S, k, r, n)
                # Of the trials, in float64: the modules' own scales are rounded to their dtype.
                scale = torch.tensor(
                    [[trial.at(name).scale for trial in self.trials[bucket]] for name in names],
                    dtype=torch.float64,
                )
                dW = LowRank(B=B, A=A, scale=scale.to(B.device))
                magnitudes = [s.magnitude[i] for s in layers if isinstance(s, PackedDoRA)]
                magnitude = measurable(torch.stack(magnitudes)) if magnitudes else None
                yield updated(names, bucket, W, dW, magnitude)

    def state(self, k: int, buffers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Trial ``k``'s adapters and heads by their names in the model, from buffers like its
        rows' values, cut to its rank."""
        trial = self.trials[k]
        values = {
            id(p): view
            for group, buffer in zip(self.params, buffers, strict=True)
            for p, view in zip(group.parameters, group.views(buffer), strict=True)
        }
        state: dict[str, Tensor] = {}
        for name, site in self.sites.items():
            bucket, place = site.place_of(k)
            rank = trial.rank_of(name)
            state[f"{name}.lora_A.weight"] = values[id(site.A[bucket])][place, :rank]
            state[f"{name}.lora_B.weight"] = values[id(site.B[bucket])][place, :, :rank]
            if isinstance(site, PackedDoRA):
                state[f"{name}.{MAGNITUDE}.weight"] = values[id(site.magnitude[bucket])][place]
        for name, head in self.heads.items():
            state |= {f"{name}.{key}": values[id(p)][k] for key, p in head.named_parameters()}
        return state

    def save(self, k: int, buffers: Sequence[Tensor], folder: Path) -> None:
        """Trial ``k`` with these buffers in place of its rows' values, as a PEFT adapter in
        ``folder``."""
        config = self.config(k, converted=True)
        save_adapter(folder, self.state(k, buffers), config, self.model.config, self.starts(k))

    def starts(self, k: int) -> dict[str, Pair]:
        """B0 and A0 of each site of trial ``k``, if its start took them out of the base."""
        found = {}
        for name, site in self.sites.items():
            bucket, place = site.place_of(k)
            if (start := site.starts()[bucket]) is not None:
                B, A = start
                rank = self.trials[k].rank_of(name)
                found[name] = B.detach()[place, :, :rank], A.detach()[place, :rank]
        return found

    def config(self, k: int, *, converted: bool = False) -> LoraConfig:
        """What PEFT calls trial ``k`` in training, or as it is saved."""
        conv = any(isinstance(site.base, Conv1D) for site in self.sites.values())
        return lora_config(
            self.trials[k],
            base=self.base,
            sites=list(self.sites),
            fan_in_fan_out=conv,
            modules_to_save=self.modules_to_save,
            is_language=self.is_language,
            converted=converted,
        )
