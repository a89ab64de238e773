"""The second objective of pretraining: was a sentence, or its copy beside it, tampered with?

Masked-language modelling does not train ``<s>``, which a classifier reads, and a small encoder
cannot learn it from 2,000 labels. So a last stage of pretraining also tells real sentences from
tampered ones, as BERT's next sentence (Devlin et al. 2019), StructBERT's word order (Wang et al.
2020) and ELECTRA's replaced tokens (Clark et al. 2020) do. It sees the books only, no row of the
lab's tasks.

Letters: B sequences of a batch, T tokens of the longest, V vocabulary, d hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from corpus import BEGIN, END, MASK, PAD, Stream
from torch import Tensor

NEIGHBOURS = 24


@dataclass(frozen=True)
class Judged:
    """`inputs` and `attention` (B, T); `labels` (B,): 1 where the sequence is intact."""

    inputs: Tensor
    attention: Tensor
    labels: Tensor


def neighbours(embedding: Tensor) -> np.ndarray:
    """(V, NEIGHBOURS) ids of the tokens nearest in cosine to each row of `embedding` (V,
    d), without special tokens."""
    unit = torch.nn.functional.normalize(embedding.detach(), dim=1)
    cosine = unit @ unit.mT
    cosine.fill_diagonal_(-2.0)
    cosine[:, : MASK + 1] = -2.0
    return cosine.topk(NEIGHBOURS, dim=1).indices.numpy()


def _tampered(
    row: list[int], stream: Stream, near: np.ndarray, generator: np.random.Generator
) -> list[int]:
    """One token exchanged with the next, replaced by a neighbour, or by any token of the text."""
    out = list(row)
    i = int(generator.integers(0, len(row) - 1))
    fate = generator.random()
    if fate < 0.3 and out[i] != out[i + 1]:
        out[i], out[i + 1] = out[i + 1], out[i]
        return out
    new = (
        near[out[i], generator.integers(NEIGHBOURS)] if fate < 0.8 else generator.choice(stream.ids)
    )
    out[i] = int(new) if new != row[i] else int(near[out[i], 0])
    return out


def _thinned(row: list[int], generator: np.random.Generator) -> list[int]:
    """A sentence with up to two tokens left out: an echo need not be a copy."""
    out = list(row)
    for _ in range(int(generator.integers(0, 3))):
        del out[int(generator.integers(0, len(out)))]
    return out


def judged(
    stream: Stream, *, count: int, near: np.ndarray, generator: np.random.Generator
) -> Judged:
    """`count` sequences, half of them a sentence, half a short sentence and its echo; half are
    tampered with."""
    lengths = np.diff(stream.starts, append=stream.ids.size)
    kinds = [np.flatnonzero((lengths >= 5) & (lengths <= longest)) for longest in (24, 14)]
    rows, labels = [], []
    for k in range(count):
        sentence = int(generator.choice(kinds[k % 2]))
        row = stream.ids[
            stream.starts[sentence] : stream.starts[sentence] + lengths[sentence]
        ].tolist()
        intact = bool(generator.random() < 0.5)
        if k % 2 == 0:
            text = row if intact else _tampered(row, stream, near, generator)
            rows.append([BEGIN, *text, END])
        else:
            echo = _thinned(row, generator)
            echo = echo if intact else _tampered(echo, stream, near, generator)
            first, second = (row, echo) if generator.random() < 0.5 else (echo, row)
            rows.append([BEGIN, *first, END, END, *second, END])
        labels.append(int(intact))
    width = max(map(len, rows))
    inputs = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return Judged(inputs, (inputs != PAD).long(), torch.tensor(labels))
