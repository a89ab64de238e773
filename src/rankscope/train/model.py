"""A Hugging Face sequence classifier: loading, the layers that an update adapts, those trained in
full."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from rankscope.study.cost import Shape, Site
from rankscope.study.tasks import Task
from rankscope.train.encoder import before_adapters, is_patchable, of_one_token
from rankscope.train.model_folder import check_folder


def load_model(model: str, task: Task) -> PreTrainedModel:
    """The model in float32, with its own eager attention: the one that leaves no argument out.

    What its file lacks is drawn from a fixed seed, the same every time.

    Parameters require a gradient in the layers of ``trained_in_full``, in no other. ``ValueError``,
    one line, for a folder or hub id that can't be trained on.
    """
    with one_line(model), quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = _from_pretrained(model, task, attn_implementation="eager")
        if (
            loaded.config.pad_token_id is None
        ):  # decoders classify the last token that is not padding
            loaded.config.pad_token_id = load_tokenizer(model).pad_token_id
        return loaded


def _from_pretrained(model: str, task: Task, **settings: Any) -> PreTrainedModel:
    """The model, with gradients where ``load_model`` says."""
    check_folder(model)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=task.num_labels, dtype=torch.float32, ignore_mismatched_sizes=True,
        output_loading_info=True,
        trust_remote_code=False, **settings,
    )  # fmt: skip
    if getattr(loaded, "_hf_peft_config_loaded", False):
        raise ValueError("found an adapter in it: name the model that the adapter was trained on")
    prefix = loaded.base_model_prefix + "."
    wrong = sorted(name for name, *_ in report["mismatched_keys"] if name.startswith(prefix))
    if wrong:  # a head for another number of labels is no matter: heads are drawn anew
        raise ValueError(f"its file and its config.json disagree about the shape of {wrong[0]}")
    absent = sorted(name for name in report["missing_keys"] if name.startswith(prefix))
    above = _above_blocks(loaded)
    if lost := [name for name in absent if not name.startswith(above)]:
        raise ValueError(
            f"its file lacks {len(lost)} of the model's weights, the first is {lost[0]}"
        )
    _require_gradients(loaded, {name.rpartition(".")[0] for name in absent})
    return loaded


def _above_blocks(model: PreTrainedModel) -> tuple[str, ...]:
    """The parts of the base model that follow its blocks, such as BERT's pooler: a fresh one can be
    trained with the head. Without an embedding or a block of its own a pretrained model is none."""
    children = list(model.base_model.named_children())
    blocks = [
        i
        for i, (_, part) in enumerate(children)
        if any(isinstance(m, nn.ModuleList) for m in part.modules())
    ]
    above = children[blocks[-1] + 1 :] if blocks else []
    return tuple(f"{model.base_model_prefix}.{name}." for name, _ in above)


def _require_gradients(model: PreTrainedModel, absent: Collection[str] = ()) -> None:
    """Of the modules outside the base model, and of those that the file lacks."""
    model.requires_grad_(False)
    prefix = model.base_model_prefix
    for name, module in model.named_modules():
        if name in absent or not f"{name}.".startswith(f"{prefix}."):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose parameters are those of ``model``; changes of modules leave it as it is."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def load_tokenizer(model: str) -> Any:
    with one_line(model), quiet():
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


def skeleton(model: str, task: Task) -> PreTrainedModel:
    """The model without its weights (on the meta device): shapes and names only, gradients as
    ``load_model`` has them.

    A local folder's file is compared with its configuration; of a hub model only the configuration
    is read.
    """
    with one_line(model), quiet():
        if Path(model).is_dir():
            return _from_pretrained(model, task, device_map="meta")
        check_folder(model)
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(
                model, num_labels=task.num_labels, trust_remote_code=False
            )
            found = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
        _require_gradients(found)
        return found


def fingerprint(model: str) -> str:
    """SHA-256 of a local folder's configuration and weights; the commit of a hub model."""
    folder = Path(model)
    if not folder.is_dir():
        with one_line(model), quiet():  # the cache keeps a file under snapshots/<commit>/
            return Path(hf_hub_download(model, "config.json")).parent.name
    digest = hashlib.sha256()
    for path in sorted(
        p
        for p in folder.iterdir()
        if p.suffix in (".safetensors", ".bin") or p.name == "config.json"
    ):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def sites(model: PreTrainedModel, target_modules: Sequence[str]) -> dict[str, nn.Module]:
    """The frozen linear layers of the base model that are called one of ``target_modules`` (PEFT's
    rule: the whole name or its last parts), in order."""
    trained = trained_in_full(model)
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and name.startswith(model.base_model_prefix + ".")
        and name not in trained
    }
    called = {
        target: [name for name in linear if f".{name}".endswith(f".{target}")]
        for target in target_modules
    }
    for target, names in called.items():
        if not names:
            known = sorted({name.split(".")[-1] for name in linear})
            raise ValueError(
                f"target_modules: expected names of linear layers of {type(model).__name__} "
                f"({', '.join(known)}); found {target!r}"
            )
    found = {name for names in called.values() for name in names}
    return {name: module for name, module in linear.items() if name in found}


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
    shared = {name for name in matrices if is_patchable(model) and before_adapters(name, prefix)}
    one_token = {
        name for name in matrices if is_patchable(model) and of_one_token(name, prefix, config)
    }
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
        head=sum(p.numel() for p in model.parameters() if p.requires_grad),
        one_token=sum(matrices[name] for name in one_token),
        shared=sum(matrices[name] for name in shared),
    )


def trained_in_full(model: PreTrainedModel) -> dict[str, nn.Module]:
    """What an adapter trains and saves beside its factors: every module with parameters of its own
    outside the base model (the head: linear layers, in some families a norm), and those of the base
    model that its file lacks."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    }


def drawn_beside_head(model: PreTrainedModel) -> list[str]:
    """Those of ``trained_in_full`` that belong to the base model, and that its file lacks."""
    prefix = model.base_model_prefix + "."
    return [name for name in trained_in_full(model) if name.startswith(prefix)]


def modules_to_save(model: PreTrainedModel) -> list[str]:
    """PEFT's setting for ``trained_in_full``: whole heads by their first name, layers of
    the base by their whole name.

    ``ValueError`` where PEFT, which takes every module whose name ends in one of these, would take
    another as well.
    """
    prefix, trained = model.base_model_prefix + ".", trained_in_full(model)
    names = sorted({name if name.startswith(prefix) else name.split(".")[0] for name in trained})
    for name, module in model.named_modules():
        saved_by = [ending for ending in names if name.endswith(ending)]
        if saved_by and not trained.keys() & {
            f"{name}.{inner}".rstrip(".") for inner, _ in module.named_modules()
        }:
            raise ValueError(
                f"modules_to_save: {saved_by[0]!r} would make PEFT train {name}, too: use "
                'method = "full"'
            )
    return names


@torch.no_grad()
def draw_head(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Fresh values for ``trained_in_full``, in the order of the modules: matrices from N(0,
    initializer_range^2), zero biases, norms of weight 1."""
    for layer in trained_in_full(model).values():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.ndim > 1:
                deviation = getattr(model.config, "initializer_range", 0.02)
                parameter.normal_(0.0, deviation, generator=generator)
            else:
                parameter.fill_(1.0 if name == "weight" else 0.0)


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A trial's random stream: "init", "order" or "dropout"; independent of each other, equal for
    equal seeds."""
    entropy = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(entropy))


@contextlib.contextmanager
def one_line(model: str) -> Iterator[None]:
    """Whatever transformers raises on a model, as a ``ValueError`` of one line. Out of memory
    passes as it is."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        expected = (
            "expected a folder with config.json, weights and tokenizer, or a hub id "
            "that can be reached"
        )
        raise ValueError(f"model {model!r}: {expected}; {reason}") from None


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars, and its report on heads that are new: ours always are."""
    verbosity, bar = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
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
