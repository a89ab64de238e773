"""A pack of one full fine-tune: every weight of the model is trained. Letters: S sites of one
shape, m out, n in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from rankscope.linalg import Dense
from rankscope.study.tasks import Task
from rankscope.study.trial import Trial
from rankscope.train.encoder import is_patchable, patch_encoder
from rankscope.train.loading import load_model, quiet, sharing_weights
from rankscope.train.model import draw_head, sites, stream, weight_of
from rankscope.train.optimizer import FlatParams, kind_of
from rankscope.train.packed import DropoutMasks
from rankscope.train.spectra import Updates, measurable


class FullPack:
    """A pack with K = 1. With ``stock`` it uses the model's own forward pass and head, even if
    ``encoder`` or ``language`` has a faster one."""

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        model: str,
        task: Task,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        stock: bool = False,
    ) -> None:
        (trial,) = trials
        self.trials = [trial]
        self.masks = DropoutMasks(1, stream(trial.seed, "dropout").initial_seed(), device)
        self.repeats, self.takes_dropouts = 1, False
        self.own_head = stock and task.is_language
        self.is_language = task.is_language
        self.model = load_model(model, task)
        draw_head(self.model, stream(trial.seed, "init"))
        self.sites = sites(self.model, trial.target_modules)
        self.model.requires_grad_(True)
        self.stock = None  # the unpatched model over the same weights, for `isolation`
        if (is_patchable(self.model) or task.is_language) and not stock:
            self.stock = sharing_weights(self.model)
            if not task.is_language:
                patch_encoder(self.model, self.masks)
        self.model.to(device=device, dtype=dtype)
        self.pretrained = {name: weight_of(site).clone() for name, site in self.sites.items()}
        parameters = list(self.model.parameters())
        decays = [p.ndim > 1 for p in parameters]  # biases and norms are vectors
        inner = {
            id(module.weight)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and name.startswith(self.model.base_model_prefix + ".")
        }
        kinds = [kind_of(trial, factor="W" if id(p) in inner else None) for p in parameters]
        self.params = [FlatParams(parameters, decays=decays, members=slice(0, 1), kinds=kinds)]

    def updates(self) -> Iterator[Updates]:
        """W_pre, W_FT - W_pre and W_FT of all sites, those of one shape together."""
        shapes: dict[torch.Size, list[str]] = {}
        for name, W in self.pretrained.items():
            shapes.setdefault(W.shape, []).append(name)
        for names in shapes.values():
            W = measurable(torch.stack([self.pretrained[name] for name in names]))
            tuned = torch.stack([weight_of(self.sites[name]) for name in names])[:, None]
            tuned = measurable(tuned)
            yield Updates(
                names, slice(0, 1), W, Dense(tuned.double() - W[:, None].double()), Dense(tuned)
            )

    def save(self, k: int, buffers: Sequence[Tensor], folder: Path) -> None:
        """The model with this buffer in place of its row's values, as a Hugging Face
        checkpoint in ``folder``."""
        assert k == 0
        (group,), (buffer,) = self.params, buffers
        values = {id(p): v for p, v in zip(group.parameters, group.views(buffer), strict=True)}
        state = self.model.state_dict()
        for name, p in self.model.named_parameters(
            remove_duplicate=False
        ):  # tied weights have two names
            state[name] = values[id(p)]
        with quiet():
            self.model.save_pretrained(
                folder, state_dict={name: value.contiguous() for name, value in state.items()}
            )
        if not self.is_language:
            _write_labels(folder / "config.json", self.model.config)


def _write_labels(path: Path, config: PreTrainedConfig) -> None:
    """Writes the number of labels: transformers omits its general default, two, but BART's is
    three."""
    labels = {"id2label": config.id2label, "label2id": config.label2id}
    path.write_text(json.dumps(labels | json.loads(path.read_text()), indent=2) + "\n")
