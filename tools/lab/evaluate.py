"""What the encoder has learnt, on books that it never saw: ``python tools/lab/evaluate.py --corpus
FOLDER``."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import corpus
import numpy as np
import torch
from corpus import Masked, Stream
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, RobertaForMaskedLM

from rankscope.lab import ENCODER

BATCHES, SEQUENCES, LENGTH, RATE = 40, 64, 64, 0.15


def batches(stream: Stream, *, vocabulary: int, seed: int = 0) -> list[Masked]:
    """The masked passages of the evaluation: the same for every model."""
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(BATCHES):
        rows = corpus.passages(stream, count=SEQUENCES, length=LENGTH, generator=generator)
        drawn.append(corpus.mask(rows, rate=RATE, vocabulary=vocabulary, generator=generator))
    return drawn


@torch.no_grad()
def masked_tokens(model: RobertaForMaskedLM, drawn: list[Masked]) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy over the masked tokens."""
    model.eval()
    loss, right, count = 0.0, 0, 0
    for masked in drawn:
        logits = model(masked.inputs).logits.flatten(0, 1)[masked.positions]  # (P, vocabulary)
        loss += float(cross_entropy(logits, masked.targets, reduction="sum"))
        right += int((logits.argmax(-1) == masked.targets).sum())
        count += len(masked.targets)
    return loss / count, right / count


def most_frequent(drawn: list[Masked]) -> float:
    """Accuracy of the best single guess: the token that is masked most often, chosen in
    hindsight."""
    targets = Counter(token for masked in drawn for token in masked.targets.tolist())
    return max(targets.values()) / sum(targets.values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tools/lab/evaluate.py", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with books-valid.txt.xz")
    options = parser.parse_args()
    model = RobertaForMaskedLM.from_pretrained(ENCODER)
    texts = corpus.sentences(options.corpus / "books-valid.txt.xz")
    stream = corpus.encode(texts, AutoTokenizer.from_pretrained(ENCODER))
    drawn = batches(stream, vocabulary=model.config.vocab_size)
    torch.manual_seed(0)
    untrained = RobertaForMaskedLM(model.config)
    print(f"masked tokens: {sum(len(masked.targets) for masked in drawn)}")
    for name, one in (("this encoder", model), ("untrained", untrained)):
        loss, accuracy = masked_tokens(one, drawn)
        print(f"{name:14} loss {loss:.3f}  accuracy {accuracy:.3f}")
    print(f"{'unigram':14} accuracy {most_frequent(drawn):.3f}")


if __name__ == "__main__":
    main()
