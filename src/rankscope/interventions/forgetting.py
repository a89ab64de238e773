"""Forgetting: the language-modelling loss of the base with an edited update, in nats per token.

If the base has a head for masked tokens, the mean cross-entropy of tokens masked by a fixed draw
(each with probability 0.15, all replaced by the mask token); if it has one for the next token, the
mean cross-entropy of all tokens but the first of each block. The head is the base's own.

Letters: S blocks of at most T tokens, V words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from rankscope.evaluation.matrices import Matrices
from rankscope.evaluation.pack import Edited, is_zero
from rankscope.train.loading import check_folder, load_tokenizer, one_line, quiet

LARGEST = 2**22  # bytes of the text that are read
BLOCKS, TOKENS = 128, 128  # S and T at most
MASKED = 0.15  # share of tokens, as BERT was trained
BATCH = 16  # blocks
_UNLABELLED = -100  # torch's label for tokens without a loss


def text_of(path: str | Path) -> str:
    """The text of a file, its first 4 MiB. ``ValueError`` or ``OSError``, one line."""
    with Path(path).open("rb") as file:
        data = file.read(LARGEST + 1)
    cut = data[:LARGEST]
    try:
        text = cut.decode("utf-8", errors="ignore" if len(data) > LARGEST else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8; byte {error.start} is not") from None
    if not text.strip():
        raise ValueError(f"{path}: expected text; found none")
    return text


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Forgetting:
    """Args:
        model: folder or hub id of the base.
        mixed: whether products are taken in bfloat16.

    ``ValueError``, one line, for a base without such a head, and for a text of too few tokens.
    """

    def __init__(self, model: str, text: str, *, device: torch.device, mixed: bool = False) -> None:
        self.device, self.mixed = device, mixed
        tokenizer = load_tokenizer(model)
        masked, self.lm = _with_head(model)
        self.lm.to(device).eval()
        self.blocks = _blocks(text, tokenizer, masked=masked, longest=_longest(self.lm))
        self.shift = 0 if masked else 1
        self.matrices = Matrices(self.lm)
        self.base = self._loss({})

    @torch.no_grad()
    def __call__(self, edited: Edited) -> float:
        """The loss of the base with this variant's updates and a full fine-tune's other weights."""
        merged = {}
        for name, update in edited.updates.items():
            if name not in self.matrices or is_zero(update):  # such as BERT's pooler
                continue
            W = self.matrices[name]
            merged[name] = (W.double().cpu() + update.to_dense().double().cpu()).to(W)
        weights, known = self.matrices.as_parameters(merged), self.matrices.parameters
        rest = {k: x.to(self.device) for k, x in edited.trained.rest.items() if k in known}
        return self._loss(weights | rest)

    def _loss(self, weights: Mapping[str, Tensor]) -> float:
        total, count = 0.0, 0
        for inputs, labels in self.blocks:
            placed = {name: x.to(self.device) for name, x in inputs.items()}
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed),
            ):
                logits = functional_call(self.lm, dict(weights), (), placed).logits  # (B, T, V)
            wanted = labels[:, self.shift :].to(self.device)
            found = logits[:, : wanted.shape[1]].float().flatten(0, 1)
            total += float(
                F.cross_entropy(
                    found, wanted.flatten(), ignore_index=_UNLABELLED, reduction="sum"
                ).double()
            )
            count += int((wanted != _UNLABELLED).sum())
        return total / count


def _with_head(model: str) -> tuple[bool, PreTrainedModel]:
    """Whether it is a head for masked tokens, and the model with it."""
    with one_line(model), quiet():
        check_folder(model)
        kind = AutoConfig.from_pretrained(model, trust_remote_code=False).model_type
        masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if not masked and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(f"--forgetting needs a language model; found {kind!r}")
        auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        with torch.random.fork_rng():
            found, report = auto.from_pretrained(
                model, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
    if absent := sorted(report["missing_keys"]):
        raise ValueError(
            f"--forgetting: expected a base with its head for {'masked' if masked else 'next'} "
            f"tokens; {model} lacks {absent[0]}"
        )
    return masked, found.requires_grad_(False)


def _longest(lm: PreTrainedModel) -> int:
    """The largest T that its position embeddings allow; RoBERTa's start at 2."""
    limit = getattr(lm.config, "max_position_embeddings", None) or TOKENS
    return int(max(4, min(TOKENS, limit - 2)))


def _blocks(
    text: str, tokenizer: Any, *, masked: bool, longest: int
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Batches of blocks: inputs (B, T) and labels (B, T), -100 for tokens without a loss."""
    if masked and tokenizer.mask_token_id is None:
        raise ValueError("--forgetting: expected a tokenizer with a mask token; found none")
    found = tokenizer(
        text, truncation=True, max_length=longest, return_overflowing_tokens=True,
        return_special_tokens_mask=True, return_attention_mask=True,
    )  # fmt: skip
    rows = found["input_ids"][:BLOCKS]
    generator, batches = torch.Generator().manual_seed(0), []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        special = found["special_tokens_mask"][start : start + BATCH]
        T = max(map(len, some))
        ids = torch.full((len(some), T), tokenizer.pad_token_id or 0)
        seen, plain = torch.zeros(len(some), T, dtype=torch.long), torch.zeros(len(some), T)
        for i, (row, mask) in enumerate(zip(some, special, strict=True)):
            ids[i, : len(row)], seen[i, : len(row)] = torch.tensor(row), 1
            plain[i, : len(row)] = 1 - torch.tensor(mask, dtype=torch.float32)
        if masked:
            hidden = (torch.rand(ids.shape, generator=generator) < MASKED) & plain.bool()
            labels = ids.where(hidden, torch.tensor(_UNLABELLED))
            ids = ids.masked_fill(hidden, tokenizer.mask_token_id)
        else:
            labels = ids.where(seen.bool(), torch.tensor(_UNLABELLED))
        batches.append(({"input_ids": ids, "attention_mask": seen}, labels))
    if not any(
        bool((labels[:, 0 if masked else 1 :] != _UNLABELLED).any()) for _, labels in batches
    ):
        raise ValueError("--forgetting: expected a longer text: no token of it is left to predict")
    return batches
