"""Tests on a small random copy, before the weights are read, whether trials of a model can train in
one pack."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from rankscope.study.tasks import Task
from rankscope.study.trial import Trial
from rankscope.train.adapters import AdapterPack
from rankscope.train.data import Encoded
from rankscope.train.isolation import prove
from rankscope.train.loading import auto_class, quiet
from rankscope.train.packed import NotIsolated
from rankscope.train.text_tokens import IGNORED

BLOCKS, VOCABULARY = 2, 64
LARGEST = 50_000_000  # parameters of a copy that is still quick to make


def why_not_packed(skeleton: PreTrainedModel, trial: Trial, task: Task) -> str | None:
    """Why trials like this one must train one at a time; None if no reason was found. Every pack is
    checked again before it trains.

    Also None if no small copy of the model can be made or run.
    """
    tokens = _tokens(task, rows=3)
    try:
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)
            small = _small(skeleton, task)
            small(**tokens.inputs)
    except Exception:  # noqa: BLE001 - whatever a family can't do in small, its own code says how
        return None
    ranks = (2, 4, 6) if trial.init_lora_weights == "orthogonal" else (1, 2, 3)
    trials = [trial.model_copy(update={"rank": rank, "rank_pattern": {}}) for rank in ranks]
    try:
        pack = AdapterPack(trials, model="", task=task, device=torch.device("cpu"), loaded=small)
        prove(pack, tokens, torch.arange(len(tokens)))
    except (NotIsolated, ValueError) as error:
        return str(error)
    return None


def _small(skeleton: PreTrainedModel, task: Task) -> Any:
    complete = copy.deepcopy(skeleton.config)
    config = complete.get_text_config()
    whole = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == whole:  # one entry a block
            setattr(config, name, value[:BLOCKS])
        elif name.endswith("token_id") and isinstance(value, int) and value >= VOCABULARY:
            setattr(config, name, VOCABULARY - 1)
    config.num_hidden_layers, config.vocab_size = min(BLOCKS, whole), VOCABULARY
    config.pad_token_id, config.eos_token_id = 0, 2
    with torch.device("meta"):
        size = auto_class(task).from_config(complete).num_parameters()
    if size > LARGEST:
        raise ValueError(f"expected a copy of at most {LARGEST} parameters; found {size}")
    small = auto_class(task).from_config(complete, attn_implementation="eager")
    names = {name for name, p in skeleton.named_parameters() if p.requires_grad}
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(name in names)
    small.base_model_prefix = skeleton.base_model_prefix
    return small.float()


def _tokens(task: Task, *, rows: int) -> Encoded:
    """Rows of different lengths that end in the end token, which BART and T5 look for."""
    lengths = torch.arange(4, 4 + 3 * rows, 3)
    inside = torch.arange(int(lengths.max())) < lengths[:, None]  # (rows, T)
    ids = torch.randint(5, VOCABULARY - 1, inside.shape, generator=torch.Generator().manual_seed(0))
    ids = ids.where(inside, 0)
    ids[torch.arange(rows), lengths - 1] = 2
    return Encoded(
        {"input_ids": ids, "attention_mask": inside.long()},
        ids.where(inside, IGNORED) if task.is_language else torch.zeros(rows, dtype=torch.long),
        lengths,
    )
