"""A small Llama and its tokenizer, trained from nothing on text: a base that is worth fine-tuning.

    python tools/tiny_llama.py train TEXT... --to FOLDER [--steps 6000]
    python tools/tiny_llama.py rows TEXT --model FOLDER --to FOLDER [--length 64]

TEXT is a text file, or one packed by xz. ``train`` writes the model as transformers reads it and a
byte-pair tokenizer; stopped, it goes on from its last checkpoint in FOLDER. ``rows`` cuts a text
into lines {"text": ...} that the model reads as about LENGTH tokens each, for a study's
``kind = "causal-lm"``: the first nine tenths are train.jsonl, the rest validation.jsonl. Letters: B
rows, T tokens.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
STATE = "training.pt"


def read(paths: Iterable[Path]) -> str:
    parts = [
        lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        for path in paths
    ]
    return "\n\n".join(part.decode("utf-8") for part in parts)


def tokenizer_of(text: str, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained on the text: every text has tokens in it."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(text.split("\n"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token=END, pad_token=END)


def config_of(arguments: argparse.Namespace) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=8 * arguments.width // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4 * arguments.length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )


def batches(tokens: torch.Tensor, arguments: argparse.Namespace, first: int) -> Iterator[list[int]]:
    """Places in the text; each step draws its own, so that a resumed run sees what it would have
    seen."""
    for step in range(first, arguments.steps):
        generator = torch.Generator().manual_seed(step)
        high = len(tokens) - arguments.length
        yield torch.randint(high, (arguments.batch,), generator=generator).tolist()


def train(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.to
    folder.mkdir(parents=True, exist_ok=True)
    text = read(arguments.text)
    if (folder / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = tokenizer_of(text, arguments.vocabulary)
        tokenizer.save_pretrained(folder)
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    print(f"{len(tokens):,} tokens of {len(text) / len(tokens):.2f} characters", flush=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config_of(arguments))
    print(f"{model.num_parameters():,} weights", flush=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=arguments.rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    step, saved, losses = 0, time.monotonic(), []
    if (folder / STATE).is_file():
        kept = torch.load(folder / STATE, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        step = kept["step"]
    for places in batches(tokens, arguments, step):
        rows = torch.stack([tokens[i : i + arguments.length] for i in places])  # (B, T)
        warm, left = (step + 1) / 200, 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min(1.0, warm) * max(0.05, left)
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(float(loss.detach()))
        if step % 250 == 0:
            print(f"step {step}: loss {sum(losses[-250:]) / len(losses[-250:]):.4f}", flush=True)
        if time.monotonic() - saved > 60:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step}, folder / f"{STATE}.new")
            (folder / f"{STATE}.new").replace(folder / STATE)
            saved = time.monotonic()
    model.save_pretrained(folder)
    (folder / STATE).unlink(missing_ok=True)


def rows(arguments: argparse.Namespace) -> None:
    """Whole words, so that a row is read as it stood in the text up to its first token."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.model)
    text = " ".join(read(arguments.text).split())
    found = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    lines, start = [], 0
    while start < len(found):
        last = min(len(found), start + arguments.length - 1)
        while last < len(found) and last > start + 1 and text[found[last][0]] != " ":
            last -= 1
        lines.append(text[found[start][0] : found[last - 1][1]].strip())
        start = last
    arguments.to.mkdir(parents=True, exist_ok=True)
    written = [json.dumps({"text": line}) + "\n" for line in lines if line]
    first = 9 * len(written) // 10
    (arguments.to / "train.jsonl").write_text("".join(written[:first]))
    (arguments.to / "validation.jsonl").write_text("".join(written[first:]))
    print(f"{first:,} + {len(written) - first:,} rows", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train")
    one.set_defaults(call=train)
    for name, default in (("steps", 6000), ("batch", 16), ("vocabulary", 1024)):
        one.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("width", 64), ("layers", 4)):
        one.add_argument(f"--{name}", type=int, default=default)
    one.add_argument("--rate", type=float, default=3e-3)
    other = commands.add_parser("rows")
    other.set_defaults(call=rows)
    other.add_argument("--model", type=Path, required=True)
    for command in (one, other):
        command.add_argument("text", type=Path, nargs="+")
        command.add_argument("--to", type=Path, required=True)
        command.add_argument("--length", type=int, default=64)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
