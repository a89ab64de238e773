"""A pack of LoRA trials: injection into a Hugging Face model, the updates as operators, saving in
PEFT's format.

Letters: K trials, S sites of one shape, m out, n in, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.linalg import Dense, LowRank
from rankscope.study.tasks import Task
from rankscope.study.trial import Init, Trial
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
from rankscope.train.packed import DropoutMasks, PackedLoRA, packed_copies, rank_buckets
from rankscope.train.saved_adapter import lora_config, save_adapter
from rankscope.train.spectra import Updates


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
        self.sites = {name: self._adapted(base, draws) for name, base in found.items()}
        self.takes_dropouts = not is_patchable(self.model)
        self.repeats = K if self.takes_dropouts else 1
        if not self.takes_dropouts:
            patch_encoder(self.model, self.masks)
        for name, module in [*self.sites.items(), *self.heads.items()]:
            self.model.set_submodule(name, module)
        self.model.to(device=device, dtype=dtype)
        self.params = self._flat_params()

    def _adapted(self, base: nn.Module, draws: Sequence[torch.Generator]) -> PackedLoRA:
        """As ``draw_factors`` has it."""
        m, n = weight_of(base).shape
        ranks = [trial.rank or 0 for trial in self.trials]
        cuts = rank_buckets(ranks)
        largest = [max(ranks[bucket]) for bucket in cuts]
        As = [
            torch.zeros(bucket.stop - bucket.start, r, n)
            for bucket, r in zip(cuts, largest, strict=True)
        ]
        Bs = [torch.zeros(len(A), m, A.shape[1]) for A in As]
        padded = [
            pair for Bs_, As_ in zip(Bs, As, strict=True) for pair in zip(Bs_, As_, strict=True)
        ]
        for (B, A), trial, generator in zip(padded, self.trials, draws, strict=True):
            draw_factors(B[:, : trial.rank], A[: trial.rank], trial.init_lora_weights, generator)
        return PackedLoRA(
            base,
            B=Bs,
            A=As,
            scale=torch.tensor([trial.scale for trial in self.trials], dtype=torch.float64),
            buckets=cuts,
            dropout=self.trials[0].lora_dropout,
            masks=self.masks,
        )

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
            decays = [True] * len(factors)
            result.append(FlatParams(factors, decays=decays, members=bucket, kinds=kinds))
        return result

    def updates(self) -> Iterator[Updates]:
        """W, dW and W + dW of all sites, those of one shape together."""
        shapes: dict[torch.Size, list[str]] = {}
        for name, site in self.sites.items():
            shapes.setdefault(weight_of(site.base).shape, []).append(name)
        for names in shapes.values():
            layers = [self.sites[name] for name in names]
            W = torch.stack([weight_of(site.base) for site in layers])  # (S, m, n)
            for i, bucket in enumerate(layers[0].buckets):
                B = torch.stack([site.B[i].detach() for site in layers])  # (S, k, m, r)
                A = torch.stack([site.A[i].detach() for site in layers])
                # Of the trials, in float64: the modules' own scales are rounded to their dtype.
                scale = torch.tensor(
                    [trial.scale for trial in self.trials[bucket]], dtype=torch.float64
                )
                dW = LowRank(B=B, A=A, scale=scale.to(B.device))
                yield Updates(names, bucket, W, dW, Dense(W[:, None]) + dW)

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
            state[f"{name}.lora_A.weight"] = values[id(site.A[bucket])][place, : trial.rank]
            state[f"{name}.lora_B.weight"] = values[id(site.B[bucket])][place, :, : trial.rank]
        for name, head in self.heads.items():
            state |= {f"{name}.{key}": values[id(p)][k] for key, p in head.named_parameters()}
        return state

    def save(self, k: int, buffers: Sequence[Tensor], folder: Path) -> None:
        """Trial ``k`` with these buffers in place of its rows' values, as a PEFT adapter in
        ``folder``."""
        save_adapter(folder, self.state(k, buffers), self.config(k), self.model.config)

    def config(self, k: int) -> LoraConfig:
        """What PEFT calls trial ``k``."""
        conv = any(isinstance(site.base, Conv1D) for site in self.sites.values())
        return lora_config(
            self.trials[k],
            base=self.base,
            sites=list(self.sites),
            fan_in_fan_out=conv,
            modules_to_save=self.modules_to_save,
            is_language=self.is_language,
        )


@torch.no_grad()
def draw_factors(B: Tensor, A: Tensor, init: Init, generator: torch.Generator) -> None:
    """PEFT's ``init_lora_weights``, from our own stream, in place: B (m, r), A (r, n).

    True: B = 0 and A uniform in +-1/sqrt(n), which is Kaiming-uniform with a = sqrt 5. "gaussian":
    B = 0, A from N(0, 1/r^2). "orthogonal": the even and the odd rows of a random orthogonal
    matrix between two Gaussian ones, so that neither factor is zero and B A is.
    """
    r, n = A.shape
    B.zero_()
    if init == "gaussian":
        A.normal_(0.0, 1 / r, generator=generator)
    elif init == "orthogonal":
        Q = torch.linalg.qr(torch.randn(r, r, generator=generator))[0]
        A.copy_((torch.randn(n, r // 2, generator=generator) @ Q[0::2]).mT / 10)
        B.copy_(torch.randn(r // 2, len(B), generator=generator).mT @ Q[1::2] / 10)
    else:
        bound = 1 / math.sqrt(n)
        A.uniform_(-bound, bound, generator=generator)
