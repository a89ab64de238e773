"""The loss of a language model under edits: of every token that is learnt in the validation rows.

Letters: K variants in a pack, N validation rows, B rows of a batch, T tokens, n of them learnt, V
vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from rankscope.evaluation.pack import VariantPack
from rankscope.train.data import Encoded
from rankscope.train.language import learnt

HELD = 2**27  # logits that are held at once: 512 MiB in float32
_ROWS = 16  # of a batch at most
_PROVED = 2  # rows on which a pack is proved


def most_variants(model: PreTrainedModel, split: Encoded, K: int) -> int:
    """How many of K variants a pack can hold: its proof takes the logits of two rows of each."""
    return max(1, min(K, HELD // (_PROVED * _row(model, split))))


def row_losses(pack: VariantPack, split: Encoded, *, mixed: bool = False) -> Tensor:
    """The sum of the cross-entropies, in nats, of the tokens that are learnt in each row. -> (K,
    N), float64"""
    K = len(pack.variants)
    sums = torch.zeros(K, len(split), dtype=torch.float64)
    size = max(1, min(_ROWS, HELD // (K * _row(pack.stock, split))))
    for rows, inputs in split.by_length(size):
        labels = split.batch(rows)[1]
        owners, places = learnt(labels)  # (n,)
        targets = labels[owners, places + 1].to(pack.device).repeat(K)
        with torch.autocast(pack.device.type, torch.bfloat16, enabled=mixed):
            logits = pack.logits(inputs)  # (K, B, T, V)
        chosen = logits[:, owners.to(pack.device), places.to(pack.device)].flatten(0, 1)
        losses = F.cross_entropy(chosen.float(), targets, reduction="none").view(K, -1)
        sums.index_add_(1, rows[owners], losses.cpu().double())
    return sums


def learnt_in_rows(split: Encoded) -> Tensor:
    """Tokens that are learnt in each row. -> (N,), float64"""
    counts = torch.zeros(len(split), dtype=torch.float64)
    owners = learnt(split.labels)[0]
    return counts.index_add_(0, owners, torch.ones(len(owners), dtype=torch.float64))


def _row(model: PreTrainedModel, split: Encoded) -> int:
    """Logits of the longest row."""
    return int(split.lengths.max()) * int(model.config.get_text_config().vocab_size)
