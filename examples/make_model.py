"""Writes the chat example's model: a Llama of 33,000 weights that has read the letters of the other
example, and a byte-pair tokenizer with a chat template. It is there to be run, not to be talked to.

python examples/make_model.py
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATS = Path(__file__).parent / "chats"
END, TURN = "<|end|>", "<|turn|>"
TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def read(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    """Two passes of plain training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for first in [*range(0, len(texts), 8)] * 2:
        rows = [text + END for text in texts[first : first + 8]]
        batch = tokenizer(rows, padding=True, return_tensors="pt")
        learnt = batch["input_ids"].where(batch["attention_mask"].bool(), -100)
        loss = model(**batch, labels=learnt).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    chats = [json.loads(line) for line in (CHATS / "chats.jsonl").read_text("utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    said = [message["content"] for chat in chats for message in chat["messages"]]
    with (CHATS.parent / "letters" / "letters.csv").open(encoding="utf-8", newline="") as file:
        letters = [row["letter"] for row in csv.DictReader(file)]
    tokenizer.train_from_iterator([*said, *letters], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    read(model, fast, letters)
    model.save_pretrained(CHATS / "model")
    (CHATS / "model" / "generation_config.json").unlink(missing_ok=True)
    fast.save_pretrained(CHATS / "model")


if __name__ == "__main__":
    main()
