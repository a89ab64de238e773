"""A Hugging Face sequence classifier: loading, the sites that an update adapts, its head."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from rankscope.study.cost import Shape, Site
from rankscope.study.task import Task
from rankscope.train.attention import NAME as ATTENTION
from rankscope.train.encoder import before_adapters, of_one_token, shares_prefix


def load_model(model: str, task: Task) -> PreTrainedModel:
    """The model in float32 with our attention. What its file lacks is drawn from a fixed seed, the same every time."""
    with _one_line(model), quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        loaded, report = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=task.num_labels, dtype=torch.float32, attn_implementation=ATTENTION,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
        body = [
            name for name, *_ in report["mismatched_keys"] if name.startswith(loaded.base_model_prefix + ".")
        ]
        if body:  # a head for another number of labels is no matter: heads are drawn anew
            raise ValueError(f"its file and its config.json disagree about the shape of {sorted(body)[0]}")
    if loaded.config.pad_token_id is None:  # decoders classify the last token that is not padding
        loaded.config.pad_token_id = load_tokenizer(model).pad_token_id
    return loaded


def load_tokenizer(model: str) -> Any:
    with _one_line(model), quiet():
        tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def skeleton(model: str, task: Task) -> PreTrainedModel:
    """The model without its weights (on the meta device): shapes and names only."""
    with _one_line(model), quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(model, num_labels=task.num_labels)
        return AutoModelForSequenceClassification.from_config(config)


def fingerprint(model: str) -> str:
    """SHA-256 of a local folder's configuration and weights; the commit of a hub model."""
    folder = Path(model)
    if not folder.is_dir():
        with _one_line(model), quiet():  # the cache keeps a file under snapshots/<commit>/
            return Path(hf_hub_download(model, "config.json")).parent.name
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json"
    ):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def sites(model: PreTrainedModel, target_modules: Sequence[str]) -> dict[str, nn.Module]:
    """The linear layers of the base model whose name ends in one of ``target_modules`` (PEFT's rule), in order."""
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(model.base_model_prefix + ".")
    }
    found = {name: module for name, module in linear.items() if name.split(".")[-1] in target_modules}
    missing = set(target_modules) - {name.split(".")[-1] for name in found}
    if missing:
        known = sorted({name.split(".")[-1] for name in linear})
        raise ValueError(
            f"target_modules: expected names of linear layers of {type(model).__name__} ({', '.join(known)}); "
            f"found {sorted(missing)[0]!r}"
        )
    return found


def weight_of(site: nn.Module) -> Tensor:
    """W as (out, in). GPT-2's Conv1D stores (in, out)."""
    weight: Tensor = site.weight  # type: ignore[assignment]
    return weight.detach().mT if isinstance(site, Conv1D) else weight.detach()


def largest_rank(model: PreTrainedModel, target_modules: Sequence[str]) -> int:
    """The smallest dimension of the sites: what "d" stands for."""
    return min(min(weight_of(site).shape) for site in sites(model, target_modules).values())


def shape_of(model: PreTrainedModel, target_modules: Sequence[str]) -> Shape:
    """What the cost of training this model depends on."""
    config, prefix = model.config, f"{model.base_model_prefix}."
    matrices = {
        name: p.numel()
        for name, p in model.named_parameters()
        if name.startswith(prefix) and p.ndim == 2 and "embed" not in name
    }
    shared = {name for name in matrices if shares_prefix(model) and before_adapters(name, prefix)}
    one_token = {name for name in matrices if shares_prefix(model) and of_one_token(name, prefix, config)}
    return Shape(
        matrices=sum(matrices.values()),
        all=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        feed_forward=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        heads=config.num_attention_heads,
        adapted=tuple(
            Site(
                m=weight_of(site).shape[0],
                n=weight_of(site).shape[1],
                differentiated=f"{name}.weight" not in shared,
                one_token=f"{name}.weight" in one_token,
            )
            for name, site in sites(model, target_modules).items()
        ),
        head=sum(p.numel() for layer in heads(model).values() for p in layer.parameters()),
        one_token=sum(matrices[name] for name in one_token),
        shared=sum(matrices[name] for name in shared),
    )


def longest_input(model: PreTrainedModel) -> int:
    """Tokens that the model has positions for. RoBERTa counts positions from padding_idx + 1 on."""
    positions = int(model.config.max_position_embeddings)
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            return positions - module.padding_idx - 1
    return positions


def heads(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers outside the base model: the classifier, trained in every trial."""
    prefix = model.base_model_prefix + "."
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith(prefix)}


@torch.no_grad()
def draw_head(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Fresh heads: N(0, initializer_range^2), zero bias, in the order of the modules."""
    for layer in heads(model).values():
        layer.weight.normal_(0.0, getattr(model.config, "initializer_range", 0.02), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A trial's random stream: "init", "order" or "dropout"; independent of each other, equal for equal seeds."""
    entropy = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(entropy))


@contextlib.contextmanager
def _one_line(model: str) -> Iterator[None]:
    """transformers explains a missing model in paragraphs; say it in one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"model {model!r}: expected a folder with config.json and weights, or a hub id that can be reached; {reason}"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars, and its report on heads that are new: ours always are."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
