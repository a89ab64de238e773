"""Books to tokens: reads plain text, trains the byte-level BPE tokenizer, and cuts
masked-language-model batches.

Letters: B sequences of a batch, T tokens of a sequence, P masked positions of a batch.
"""

from __future__ import annotations

import json
import lzma
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, RobertaTokenizer

SPECIAL = (
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "<mask>",
)  # ids 0 to 4, RobertaConfig's defaults rely on them
BEGIN, PAD, END, UNKNOWN, MASK = range(5)

_SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["'”’]))\s+(?=["'“‘]?[A-Z])""")


def sentences(path: Path) -> list[str]:
    """Sentences of an xz-compressed UTF-8 text with one paragraph per line; headings and rules are
    left out."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        paragraphs = [
            line.replace("_", "").strip() for line in file if not line.startswith(("#", "---"))
        ]
    return [s for paragraph in paragraphs for s in _SENTENCE_END.split(paragraph) if s]


def train_tokenizer(texts: list[str], *, size: int, longest: int) -> RobertaTokenizer:
    """A RoBERTa tokenizer of `size` tokens; a space is put before the first word, so that a word
    has one spelling."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return RobertaTokenizer(
        vocab=model["vocab"], merges=merges, add_prefix_space=True, model_max_length=longest
    )


@dataclass(frozen=True)
class Stream:
    """A text as one row of token ids, int64 (N,), and where its sentences start, int64 (S,)."""

    ids: np.ndarray
    starts: np.ndarray


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Stream:
    """Tokens of all sentences one after the other, without special tokens."""
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    lengths = np.array([len(row) for row in rows])
    return Stream(
        ids=np.concatenate([np.array(row) for row in rows]), starts=np.cumsum(lengths) - lengths
    )


def passages(
    stream: Stream, *, count: int, length: int, generator: np.random.Generator
) -> np.ndarray:
    """(B, T) sequences ``<s> text </s>``, each begun at the start of a sentence drawn at random."""
    inner = length - 2
    begin = generator.choice(stream.starts[stream.starts + inner <= stream.ids.size], size=count)
    out = np.empty((count, length), dtype=np.int64)
    out[:, 0], out[:, -1] = BEGIN, END
    out[:, 1:-1] = stream.ids[begin[:, None] + np.arange(inner)]
    return out


def overlapping_pairs(
    stream: Stream, *, count: int, length: int, generator: np.random.Generator
) -> np.ndarray:
    """(B, T) sequences ``<s> text </s></s> text </s>``: two windows on one passage, the second
    moved by less than half a window. What is masked in one can be read in the other, which teaches
    attention to compare a pair.
    """
    window = length // 2 - 2
    shift = generator.integers(0, window // 2 + 1, size=count)
    fits = stream.starts[stream.starts + 2 * window <= stream.ids.size]
    begin = generator.choice(fits, size=count)
    swap = generator.integers(0, 2, size=count)
    out = np.full((count, length), END, dtype=np.int64)
    out[:, 0] = BEGIN
    steps = np.arange(window)
    out[:, 1 : 1 + window] = stream.ids[(begin + shift * swap)[:, None] + steps]
    out[:, 3 + window : 3 + 2 * window] = stream.ids[(begin + shift * (1 - swap))[:, None] + steps]
    return out


@dataclass(frozen=True)
class Masked:
    """One batch: `inputs` (B, T), `positions` (P,) into the flattened inputs, `targets`
    (P,) the ids masked there."""

    inputs: Tensor
    positions: Tensor
    targets: Tensor


def mask(
    sequences: np.ndarray, *, rate: float, vocabulary: int, generator: np.random.Generator
) -> Masked:
    """Chooses `rate` of the ordinary tokens; 80 % become ``<mask>``, 10 % a random token, 10 %
    stay (Devlin et al. 2019)."""
    chosen = (generator.random(sequences.shape) < rate) & (sequences > MASK)
    fate = generator.random(sequences.shape)
    inputs = np.where(chosen & (fate < 0.8), MASK, sequences)
    random = generator.integers(MASK + 1, vocabulary, size=sequences.shape)
    inputs = np.where(chosen & (fate >= 0.8) & (fate < 0.9), random, inputs)
    positions = np.flatnonzero(chosen)
    return Masked(
        torch.from_numpy(inputs),
        torch.from_numpy(positions),
        torch.from_numpy(sequences.ravel()[positions]),
    )
