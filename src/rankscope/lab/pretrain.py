"""Pretrains the lab's encoder: ``python -m rankscope.lab.pretrain --corpus FOLDER --out FOLDER``.

FOLDER holds ``books.txt.xz`` (training) and ``books-valid.txt.xz`` (held out): plain English, a paragraph per line.
The batches of a step depend on the seed and the step alone, so a run that was stopped goes on where it was saved.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaForMaskedLM

from rankscope.lab import corpus
from rankscope.lab.corpus import Masked, Stream


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the text."""

    steps: int = 10_000
    seed: int = 0
    peak: float = 2e-3
    warmup: int = 200
    decay: float = 0.4  # the last share of the steps, over which the rate falls to 0
    weight_decay: float = 0.05
    tokens: int = 4096  # per step
    lengths: tuple[int, ...] = (32, 64, 128)  # of a step's sequences, one drawn per step
    pairs: float = 0.35  # share of the steps that show overlapping pairs
    mask: float = 0.25
    vocabulary: int = 4096


def configuration(vocabulary: int) -> RobertaConfig:
    """The encoder's shape; its dropout of 0.1 is for fine-tuning, pretraining sees too little text to need it."""
    return RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=130,
        type_vocab_size=1,
    )


def rate(step: int, recipe: Recipe) -> float:
    """Warm-up, plateau, linear decay to 0."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return recipe.peak * min(1.0, (step + 1) / recipe.warmup, left)


def batch(step: int, stream: Stream, recipe: Recipe) -> Masked:
    """The masked sequences of one step."""
    generator = np.random.default_rng([recipe.seed, step])
    length = int(generator.choice(recipe.lengths))
    draw = corpus.overlapping_pairs if generator.random() < recipe.pairs else corpus.passages
    sequences = draw(stream, count=recipe.tokens // length, length=length, generator=generator)
    return corpus.mask(sequences, rate=recipe.mask, vocabulary=recipe.vocabulary, generator=generator)


def masked_loss(model: RobertaForMaskedLM, masked: Masked) -> Tensor:
    """Mean cross-entropy in nats; the logits of unmasked positions are never computed."""
    states = model.roberta(masked.inputs).last_hidden_state.flatten(0, 1)  # (B T, d)
    logits = model.lm_head(states[masked.positions]).float()  # (P, vocabulary)
    return torch.nn.functional.cross_entropy(logits, masked.targets)


def optimizer(model: RobertaForMaskedLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorm are not decayed."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak, betas=(0.9, 0.98), eps=1e-6, fused=True)


def train(
    model: RobertaForMaskedLM, stream: Stream, recipe: Recipe, *, saved: Path, every: int = 500
) -> None:
    """Trains in place. The state goes to `saved` every `every` steps and is read from there when it exists."""
    adamw = optimizer(model, recipe)
    first, began, mean = 0, time.monotonic(), 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        adamw.load_state_dict(state["optimizer"])
        first = state["step"]
    model.train()
    for step in range(first, recipe.steps):
        for group in adamw.param_groups:
            group["lr"] = rate(step, recipe)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = masked_loss(model, batch(step, stream, recipe))
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        mean += loss.item()
        done = step + 1
        if done % every == 0 or done == recipe.steps:
            state = {"model": model.state_dict(), "optimizer": adamw.state_dict(), "step": done}
            torch.save(state, saved.with_suffix(".part"))
            saved.with_suffix(".part").replace(saved)
            seconds = time.monotonic() - began
            left = seconds / (done - first) * (recipe.steps - done)
            print(
                f"step {done}  loss {mean / every:.4f}  {seconds:.0f} s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            mean = 0.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rankscope.lab.pretrain", description=__doc__)
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder with books.txt.xz and books-valid.txt.xz"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the encoder")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args(arguments)
    recipe = Recipe(steps=options.steps, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    texts = corpus.sentences(options.corpus / "books.txt.xz")
    config = configuration(recipe.vocabulary)
    tokenizer = corpus.train_tokenizer(
        texts, size=recipe.vocabulary, longest=config.max_position_embeddings - 2
    )
    tokenizer.save_pretrained(options.out)
    stream = corpus.encode(texts, tokenizer)

    torch.manual_seed(recipe.seed)  # transformers draws its initial weights from torch's own generator
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = RobertaForMaskedLM(config)
    train(model, stream, recipe, saved=options.out / "training.pt")
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1
    model.save_pretrained(options.out)


if __name__ == "__main__":
    main()
