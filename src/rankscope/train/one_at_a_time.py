"""Trains one LoRA trial through PEFT's own layers, on the stock model, if the trials of a pack are
not independent.

Letters: S sites of one shape, m out, n in, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankscope.linalg import LowRank
from rankscope.study.tasks import Task
from rankscope.study.trial import Trial
from rankscope.train.loading import load_model
from rankscope.train.model import draw_head, modules_to_save, sites, stream, weight_of
from rankscope.train.optimizer import FlatParams, kind_of
from rankscope.train.packed import DropoutMasks
from rankscope.train.peft_adapter import (
    ADAPTER,
    MAGNITUDE,
    adapted,
    leave,
    lora_config,
    save_adapter,
    trained_weights,
)
from rankscope.train.spectra import Updates, measurable, updated
from rankscope.train.starts import Pair, against_pretrained, draw_factors, leading


def _factor_of(name: str) -> str | None:
    return next((factor for factor in "AB" if name.endswith(f".lora_{factor}.weight")), None)


class PeftTrial:
    """A pack with K = 1, with the same initial weights as in an ``AdapterPack``."""

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
        settings: dict[str, Any] = {
            "base": model,
            "sites": list(self.sites),
            "fan_in_fan_out": conv,
            "modules_to_save": saved,
            "is_language": task.is_language,
        }
        self.config = lora_config(trial, converted=True, **settings)
        self.model = adapted(loaded, [lora_config(trial, **settings)])
        self.trained = trained_weights(self.model, ADAPTER)
        self.starts: dict[str, Pair] = {}  # what was taken out of the base, and of which W
        self.pretrained: dict[str, Tensor] = {}
        for name in self.sites:
            self._start(name, generator)
        self.model.to(device=device, dtype=dtype)
        parameters = list(self.trained.values())
        self.params = [
            FlatParams(
                parameters,
                decays=[p.ndim > 1 or MAGNITUDE in name for name, p in self.trained.items()],
                members=slice(0, 1),
                kinds=[
                    kind_of(trial, factor=_factor_of(name), is_vector=p.ndim == 1)
                    for name, p in self.trained.items()
                ],
            )
        ]

    @torch.no_grad()
    def _start(self, name: str, generator: torch.Generator) -> None:
        """The site's first factors; PiSSA's and OLoRA's leave the rest of W in the base."""
        trial = self.trials[0].at(name)
        B, A = self._factors(name)
        W = weight_of(self.sites[name])
        parts = leading(W, trial.init_lora_weights)
        if parts is None:
            draw_factors(B, A, trial.init_lora_weights, generator)
            return
        self.starts[name] = B0, A0 = parts.cut(trial)
        self.pretrained[name] = W
        B.copy_(B0)
        A.copy_(A0)
        leave(self.sites[name], W - trial.scale * (B0 @ A0))

    def updates(self) -> Iterator[Updates]:
        """W, dW and W + dW of all sites, those of one shape together; of DoRA one by one."""
        (trial,), shapes = self.trials, dict[Any, list[str]]()
        like = self.params[0].values
        Ws = {name: weight_of(site) for name, site in self.sites.items()} | self.pretrained
        for name, W in Ws.items():
            kind = (W.shape, trial.rank_of(name))
            shapes.setdefault(name if trial.use_dora else kind, []).append(name)
        for names in shapes.values():
            W = measurable(torch.stack([Ws[name].to(like) for name in names]))  # (S, m, n)
            factors = [
                against_pretrained(*self._factors(name), _to(self.starts.get(name), like))
                for name in names
            ]
            B, A = (torch.stack(each).detach()[:, None] for each in zip(*factors, strict=True))
            scales = [trial.at(names[0]).scale]  # the same rank at all of them
            scale = torch.tensor(scales, dtype=torch.float64, device=W.device)
            magnitude = None
            if trial.use_dora:
                each = [self.trained[f"{name}.{MAGNITUDE}.weight"].detach() for name in names]
                magnitude = measurable(torch.stack(each))[:, None]
            yield updated(names, slice(0, 1), W, LowRank(B=B, A=A, scale=scale), magnitude)

    def _factors(self, name: str) -> Pair:
        """B (m, r) and A (r, n), as they are trained."""
        B, A = (self.trained[f"{name}.lora_{factor}.weight"] for factor in "BA")
        return B, A

    def save(self, k: int, buffers: Sequence[Tensor], folder: Path) -> None:
        """The trial with this buffer in place of its row's values, as a PEFT adapter in
        ``folder``."""
        assert k == 0
        (group,), (buffer,) = self.params, buffers
        values = {id(p): v for p, v in zip(group.parameters, group.views(buffer), strict=True)}
        state = {name: values[id(p)] for name, p in self.trained.items()}
        save_adapter(folder, state, self.config, self.model.config, self.starts)


def _to(start: Pair | None, like: Tensor) -> Pair | None:
    return None if start is None else (start[0].to(like), start[1].to(like))
