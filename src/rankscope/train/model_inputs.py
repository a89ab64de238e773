"""What a model takes: how many tokens, on which side padded, which of a tokenizer's outputs."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import PreTrainedModel


def longest_input(model: PreTrainedModel) -> int | None:
    """Tokens that the model has positions for; None where it has no such bound (T5, XLNet, BLOOM).

    RoBERTa and its kin count positions from padding_idx + 1 on.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(
        model.config, "max_seq_len", None
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
