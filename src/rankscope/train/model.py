"""A Hugging Face classifier or language model: the layers that an update adapts, those trained in
full, the inputs that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.study.cost import Shape, Site
from rankscope.study.trial import ALL_LINEAR, rank_in
from rankscope.train.encoder import before_adapters, is_patchable, of_one_token

# names that model families give them; all must exist
QUERY_AND_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("q_lin", "v_lin"),
    ("q_head", "v_head"),
    ("Wqkv",),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("in_proj",),
)
# Layers that read their block's input: one tensor, held once for the gradients of all of them.
ATTENTION_INPUTS = {
    *("query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin"),
    *("v_lin", "query_proj", "key_proj", "value_proj", "query_key_value", "c_attn", "Wqkv"),
}
# where PEFT chooses otherwise, by model_type
OTHERS = {"phi": ("q_proj", "v_proj", "fc1", "fc2")}


def sites(model: PreTrainedModel, target_modules: Sequence[str]) -> dict[str, nn.Module]:
    """The frozen linear layers of the base model that are called one of ``target_modules`` (PEFT's
    rule: the whole name or its last parts; ["all-linear"]: all of them), in order."""
    trained = trained_in_full(model)
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and name.startswith(model.base_model_prefix + ".")
        and name not in trained
    }
    if list(target_modules) == [ALL_LINEAR]:
        return linear
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
    """W (out, in); GPT-2's Conv1D stores the transpose."""
    weight: Tensor = site.weight  # type: ignore[assignment]
    return weight.detach().mT if isinstance(site, Conv1D) else weight.detach()


def check_rank_pattern(
    models: Sequence[PreTrainedModel], targets: Sequence[Sequence[str]], pattern: Mapping[str, int]
) -> None:
    """``ValueError`` for an expression that stands for no site of these models, or where two give
    one site different ranks."""
    names = {name for model in models for one in targets for name in sites(model, one)}
    for name in names:
        rank_in(pattern, name)
    for expression, rank in pattern.items():
        if not any(rank_in({expression: rank}, name) for name in names):
            raise ValueError(
                f"rank_pattern: expected names of adapted layers, such as {min(names)}; "
                f"found {expression!r}"
            )


def largest_rank(model: PreTrainedModel, target_modules: Sequence[str]) -> int:
    """The smallest dimension of the sites: what "d" stands for."""
    return min(min(weight_of(site).shape) for site in sites(model, target_modules).values())


def shape_of(model: PreTrainedModel, target_modules: Sequence[str]) -> Shape:
    """What the cost of training this model depends on."""
    config, prefix = model.config.get_text_config(), f"{model.base_model_prefix}."
    looked_up = {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)
    }
    matrices = {
        name: p.numel()
        for name, p in model.named_parameters()
        if name.startswith(prefix) and p.ndim == 2 and "embed" not in name and name not in looked_up
    }
    adapted = [weight_of(site).shape for site in sites(model, target_modules).values()]
    # Perceiver's configuration has neither
    layers = getattr(config, "num_hidden_layers", len(adapted))
    width = getattr(config, "hidden_size", max(n for _, n in adapted))
    words = model.get_output_embeddings()
    shared = {name for name in matrices if is_patchable(model) and before_adapters(name, prefix)}
    one_token = {
        name for name in matrices if is_patchable(model) and of_one_token(name, prefix, config)
    }
    return Shape(
        matrices=sum(matrices.values()),
        all=sum(p.numel() for p in model.parameters()),
        layers=layers,
        width=width,
        feed_forward=getattr(config, "intermediate_size", None) or 4 * width,
        heads=getattr(config, "num_attention_heads", 0),  # FNet has none
        adapted=tuple(
            Site(
                m=weight_of(site).shape[0],
                n=weight_of(site).shape[1],
                differentiated=f"{name}.weight" not in shared,
                one_token=f"{name}.weight" in one_token,
                reads_block=name.rsplit(".", 1)[-1] in ATTENTION_INPUTS,
                name=name,
            )
            for name, site in sites(model, target_modules).items()
        ),
        head=sum(p.numel() for p in model.parameters() if p.requires_grad),
        one_token=sum(matrices[name] for name in one_token),
        shared=sum(matrices[name] for name in shared),
        vocabulary=0 if words is None else words.weight.shape[0],
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
    """The names of ``trained_in_full`` that belong to the base model: those that its file lacks."""
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


def default_targets(model: PreTrainedModel) -> list[str]:
    """``target_modules`` for this model; ``ValueError``, one line, where its layers bear none of
    the known names."""
    prefix = model.base_model_prefix + "."
    linear = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(prefix)
    }
    for names in (OTHERS.get(model.config.model_type, ()), *QUERY_AND_VALUE):
        if names and linear.issuperset(names):
            return list(names)
    if not linear:
        raise ValueError(
            f"{type(model).__name__}: expected linear layers to adapt; found none of torch's own"
        )
    raise ValueError(
        f"target_modules: no default is known for {type(model).__name__}; "
        f"expected some of its linear layers: {', '.join(sorted(linear))}"
    )


def longest_input(model: PreTrainedModel) -> int | None:
    """Tokens that the model has positions for; None where it has no such bound (T5, XLNet, BLOOM).

    RoBERTa and its kin count positions from padding_idx + 1 on.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or getattr(
        config, "max_seq_len", None
    )
    if positions is None or positions < 1:  # XLNet says -1
        return None
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            return int(positions) - module.padding_idx - 1
    return int(positions)


def row_length(model: PreTrainedModel, asked: int) -> int:
    """Tokens of a row that the model is given: as many as asked, or as it has positions for.

    ``ValueError`` where what the model computes would depend on the rows before it, and for
    LayerDrop: torch's optimisers leave a weight alone in a step that skips its layer, ours move on.
    """
    found = min(asked, longest_input(model) or asked)
    config = model.config
    dropped = [key for key, x in vars(config).items() if key.endswith("layerdrop") and x]
    if dropped:
        raise ValueError(
            f"model: expected {type(model).__name__} to run all layers in training; found "
            f"{dropped[0]} = {getattr(config, dropped[0])}. Set it to 0 in its config.json"
        )
    if getattr(config, "attention_type", None) == "block_sparse":  # BigBird
        most = (5 + 2 * config.num_random_blocks) * config.block_size
        if found > most:
            raise ValueError(
                f"max_length: expected at most {most} tokens for {type(model).__name__} with "
                "block-sparse attention, which turns into full attention for good at the first "
                f"batch of shorter rows; found {found}. Set max_length = {most}, or attention_type "
                "to original_full in its config.json"
            )
    return found


def reads_last(model: PreTrainedModel) -> bool:
    """Whether the head reads the last position, padding or not (XLNet); other decoders look for the
    last token."""
    return getattr(model.config, "summary_type", None) == "last" and hasattr(
        model, "sequence_summary"
    )


def accepted_inputs(model: PreTrainedModel) -> list[str]:
    """Names of what its forward pass takes: DistilBERT has no token types, though its tokenizer may
    make them."""
    return list(inspect.signature(model.forward).parameters)
