"""Rows of a language model -> token batches, labelled with the tokens that are learnt.

Letters: N rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import torch

from rankscope.study.tasks import Task
from rankscope.train.chats import tokens_of, with_end
from rankscope.train.data import Encoded

_SHOWN = 80  # characters of a row that a message shows
IGNORED = -100  # the label of a token that is read and not learnt


def encode_text(
    frame: pd.DataFrame,
    task: Task,
    tokenizer: Any,
    *,
    max_length: int,
    accepted: Collection[str] | None = None,
) -> Encoded:
    """Every row's first ``max_length`` tokens, the end token among them.

    Labels are (N, T): of a text all tokens, of a chat those of its answers, else ``IGNORED``; a
    model predicts each from the tokens before it. Chats whose answers all lie beyond are left out,
    and counted: they would add nothing to a loss. ``ValueError``, one line, for other rows in which
    nothing is to be predicted, and where no row is left.
    """
    texts = frame[task.text[0]].tolist()
    told, ragged, kept, cut, beyond = [], [], [], 0, 0
    for text in texts:
        if task.kind == "sft":
            try:
                ids, learnt = tokens_of(text, tokenizer)
            except ValueError as error:
                raise ValueError(f"[task.{task.name}] row {_shown(text)}: {error}") from None
        else:
            ids = tokenizer(with_end(text, tokenizer), verbose=False)["input_ids"]
            learnt = [True] * len(ids)
        if task.kind == "sft" and any(learnt[1:]) and not any(learnt[1:max_length]):
            beyond += 1
            continue  # as TRL, Axolotl and Unsloth do
        cut += len(ids) > max_length
        told.append(text)
        ragged.append(ids[:max_length])
        kept.append(learnt[:max_length])
    if not ragged:
        raise ValueError(
            f"[task.{task.name}] row {_shown(texts[0])}: expected an answer that begins within "
            f"max_length = {max_length} tokens; found none, nor in {beyond - 1} of the other "
            f"{beyond - 1} rows. Raise max_length"
        )
    _check(told, kept, task, max_length)
    lengths = np.array([len(ids) for ids in ragged])
    inside = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(inside.shape, tokenizer.pad_token_id or 0, dtype=np.int64)
    padded[inside] = np.concatenate(ragged)
    labels = np.full(inside.shape, IGNORED, dtype=np.int64)
    labels[inside] = np.where(np.concatenate(kept), padded[inside], IGNORED)
    inputs = {"input_ids": padded, "attention_mask": inside.astype(np.int64)}
    return Encoded(
        {
            name: torch.from_numpy(x)
            for name, x in inputs.items()
            if not accepted or name in accepted
        },
        torch.from_numpy(labels),
        torch.from_numpy(lengths),
        cut=int(cut),
        left_out=beyond,
    )


def learnt_tokens(split: Encoded) -> float:
    """Mean tokens of a row that are learnt."""
    return float((split.labels[:, 1:] != IGNORED).sum()) / len(split)


def _shown(text: str) -> str:
    """How a message names a row: by its text, since rows that were drawn have other numbers than
    in their file."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _check(texts: list[str], kept: list[list[bool]], task: Task, max_length: int) -> None:
    """``ValueError`` for rows without a token to predict: their loss would be a mean of nothing."""
    empty = [text for text, learnt in zip(texts, kept, strict=True) if not any(learnt[1:])]
    if not empty:
        return
    what = "an answer that begins" if task.kind == "sft" else "two tokens at least"
    raise ValueError(
        f"[task.{task.name}] row {_shown(empty[0])}: expected {what} within max_length = "
        f"{max_length} tokens; found none, nor in {len(empty) - 1} of the other {len(kept) - 1} "
        "rows. Raise max_length, or leave them out"
    )
