"""Pretrains the lab's encoder: ``python tools/lab/pretrain.py --corpus FOLDER --out FOLDER``.

FOLDER holds ``books.txt.xz`` (training) and ``books-valid.txt.xz`` (held out): plain English, a
paragraph per line. Two stages: masked-language modelling alone, then together with the task of
``corruption.py``. A step's data depend on the seed and the step alone, so a stopped run goes on
from where it was saved.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import corpus
import corruption
import numpy as np
import torch
from corpus import Masked, Stream
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, RobertaConfig, RobertaForMaskedLM

LENGTHS = (32, 64, 128)  # of a step's sequences, one drawn per step
PAIRS = 0.35  # share of the steps that show overlapping pairs
MASK_RATE = 0.25
VOCABULARY = 4096
JUDGED = 128  # sequences judged in a step of the second stage
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Stage:
    """A part of pretraining: warm-up, plateau, linear decay to 0 over the last share of the
    steps."""

    steps: int
    tokens: int  # of masked-language modelling, per step
    peak: float
    warmup: int
    decay: float
    first: int  # the number of its first step, which seeds the draws

    def rate(self, step: int) -> float:
        left = (self.steps - step) / (self.decay * self.steps)
        return self.peak * min(1.0, (step + 1) / self.warmup, left)


MASKING = Stage(steps=7500, tokens=4096, peak=2e-3, warmup=200, decay=0.4, first=0)
JUDGING = Stage(steps=3000, tokens=2048, peak=1e-3, warmup=100, decay=0.6, first=100_000)


def configuration(vocabulary: int = VOCABULARY) -> RobertaConfig:
    """The encoder's shape; its dropout of 0.1 is for fine-tuning, pretraining sees too little text
    to need it."""
    return RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=130,
        type_vocab_size=1,
    )


def batch(step: int, stream: Stream, *, tokens: int, seed: int) -> Masked:
    """The masked sequences of one step."""
    generator = np.random.default_rng([seed, step])
    length = int(generator.choice(LENGTHS))
    draw = corpus.overlapping_pairs if generator.random() < PAIRS else corpus.passages
    sequences = draw(stream, count=tokens // length, length=length, generator=generator)
    return corpus.mask(sequences, rate=MASK_RATE, vocabulary=VOCABULARY, generator=generator)


def masked_loss(model: RobertaForMaskedLM, masked: Masked) -> Tensor:
    """Mean cross-entropy in nats; the logits of unmasked positions are never computed."""
    states = model.roberta(masked.inputs).last_hidden_state.flatten(0, 1)  # (B T, d)
    logits = model.lm_head(states[masked.positions]).float()  # (P, vocabulary)
    return cross_entropy(logits, masked.targets)


def train(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    stage: Stage,
    *,
    saved: Path,
    every: int = 500,
) -> None:
    """Trains in place. The state goes to `saved` every `every` steps and is read from there when it
    exists."""
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [
        p for p in module.parameters() if p.dim() <= 1
    ]  # biases and LayerNorm are not decayed
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=stage.peak, betas=(0.9, 0.98), eps=1e-6, fused=True)
    first, began = 0, time.monotonic()
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        module.load_state_dict(state["module"])
        adamw.load_state_dict(state["optimizer"])
        first = state["step"]
    module.train()
    for step in range(first, stage.steps):
        for group in adamw.param_groups:
            group["lr"] = stage.rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(stage.first + step)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        adamw.step()
        done = step + 1
        if done % every == 0 or done == stage.steps:
            part = saved.with_suffix(".part")
            torch.save(
                {"module": module.state_dict(), "optimizer": adamw.state_dict(), "step": done}, part
            )
            part.replace(saved)
            left = (time.monotonic() - began) / (done - first) * (stage.steps - done)
            print(
                f"step {done}  loss {loss.item():.3f}  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def pretrain(
    stream: Stream, *, out: Path, seed: int, masking: Stage, judging: Stage
) -> RobertaForMaskedLM:
    """Both stages, from transformers' own initial weights."""
    torch.manual_seed(seed)  # transformers draws from torch's own generator
    config = configuration()
    for name in DROPOUT:
        setattr(config, name, 0.0)
    model = RobertaForMaskedLM(config)

    def masked(step: int) -> Tensor:
        return masked_loss(model, batch(step, stream, tokens=masking.tokens, seed=seed))

    train(model, masked, masking, saved=out / "masking.pt")

    torch.manual_seed(seed + 1)
    width = config.hidden_size
    head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
    near = corruption.neighbours(model.roberta.embeddings.word_embeddings.weight)

    def judged(step: int) -> Tensor:
        generator = np.random.default_rng([seed + 1, step - judging.first])
        rows = corruption.judged(stream, count=JUDGED, near=near, generator=generator)
        states = model.roberta(rows.inputs, attention_mask=rows.attention).last_hidden_state
        loss = masked_loss(model, batch(step, stream, tokens=judging.tokens, seed=seed))
        return loss + cross_entropy(head(states[:, 0]).float(), rows.labels)

    train(nn.ModuleList([model, head]), judged, judging, saved=out / "judging.pt")
    for name in DROPOUT:
        setattr(model.config, name, 0.1)
    return model


def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerBase:
    longest = configuration().max_position_embeddings - 2
    return corpus.train_tokenizer(texts, size=VOCABULARY, longest=longest)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python tools/lab/pretrain.py", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with books.txt.xz")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the encoder")
    parser.add_argument("--steps", type=int, default=MASKING.steps, help="steps of the first stage")
    parser.add_argument(
        "--judging-steps", type=int, default=JUDGING.steps, help="steps of the second"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    texts = corpus.sentences(options.corpus / "books.txt.xz")
    tokenizer = tokenizer_for(texts)
    tokenizer.save_pretrained(options.out)
    model = pretrain(
        corpus.encode(texts, tokenizer),
        out=options.out,
        seed=options.seed,
        masking=replace(MASKING, steps=options.steps),
        judging=replace(JUDGING, steps=options.judging_steps),
    )
    model.save_pretrained(options.out)


if __name__ == "__main__":
    main()
