"""Tiny language models from configuration, chats and texts for them, and PEFT with TRL's
SFTTrainer on a study's own batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers as hf
import trl
from peft import PeftModel
from torch import Tensor

from conftest import SIZES, WORDS, save_model, sizes
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.run import rows_of

TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2}
DECODER: dict[str, Any] = {**sizes(16), **TOKENS, "max_position_embeddings": 64}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, num_key_value_heads=1)),
    "gpt2": lambda: hf.GPT2LMHeadModel(  # its head is its embedding
        hf.GPT2Config(
            **SIZES, **TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER, num_key_value_heads=2)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(  # its logits are capped
        hf.Gemma2Config(
            **DECODER, head_dim=8, num_key_value_heads=1, sliding_window=4,
            final_logit_softcapping=1.5,
        )
    ),
    "granite": lambda: hf.GraniteForCausalLM(  # its logits are divided
        hf.GraniteConfig(**DECODER, logits_scaling=3.0, residual_multiplier=0.5)
    ),
    "llama4": lambda: hf.Llama4ForCausalLM(  # its base is not called what it says
        hf.Llama4TextConfig(
            **DECODER, num_key_value_heads=1, head_dim=8, num_local_experts=2,
            intermediate_size_mlp=32, attention_chunk_size=16,
        )
    ),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**DECODER, logit_scale=0.25)),
}  # fmt: skip
TARGETS = {"gpt2": ["c_attn"]}  # the others: query and value
TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant{% endif %}"
)


def save_language_model(folder: Path, name: str, *, template: str | None = TEMPLATE) -> str:
    path = save_model(folder, MODELS[name])
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path


def text(row: int, length: int) -> str:
    return " ".join(WORDS[(row * 7 + j * j * 3 + j) % len(WORDS)] for j in range(length))


def chat(row: int) -> dict[str, Any]:
    """One or two turns, answers of different lengths."""
    said = []
    for turn in range(1 + row % 2):
        said.append({"role": "user", "content": text(row + turn, 2 + row % 3)})
        said.append({"role": "assistant", "content": text(3 * row + turn, 1 + row % 4)})
    return {"messages": said}


def prompted(row: int) -> dict[str, Any]:
    *before, last = chat(row)["messages"]
    return {"prompt": before, "completion": [last]}


def plain(row: int) -> dict[str, Any]:
    return {"prompt": text(row, 3 + row % 3) + " ", "completion": text(5 * row, 2 + row % 4)}


ROWS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "text": ("causal-lm", lambda row: {"text": text(row, 4 + row % 7)}),
    "messages": ("sft", chat),
    "prompted": ("sft", prompted),
    "plain": ("sft", plain),
}


def inputs_of(
    folder: Path, model: str, rows: str = "text", *, count: int = 48, methods: str = '["lora"]',
    fixed: str = "", scientific: str = "",
) -> StudyInputs:  # fmt: skip
    """A study of a language model on such rows: 3/4 to train on, in batches of 4."""
    return StudyInputs(study_of(folder, model, rows, count, methods, fixed, scientific), workers=1)


def study_of(
    folder: Path, model: str, rows: str = "text", count: int = 48, methods: str = '["lora"]',
    fixed: str = "", scientific: str = "",
) -> Study:  # fmt: skip
    kind, make = ROWS[rows]
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(make(row)) + "\n" for row in range(count)]
    (folder / "train.jsonl").write_text("".join(lines[count // 4 :]))
    (folder / "validation.jsonl").write_text("".join(lines[: count // 4]))
    targets = TARGETS.get(Path(model).name, ["q_proj", "v_proj"])
    return Study.parse(
        f"""
        name = "t"
        [scientific]
        model = "{model}"
        task = "rows"
        method = {methods}
        rank = [1, 3, 8]
        {scientific}
        [nuisance]
        learning_rate = [1e-3, 1e-2]
        seed = 5
        [fixed]
        batch_size = 4
        steps = 20
        eval_every = 10
        target_modules = {targets}
        weight_decay = 0.01
        {fixed}
        [task.rows]
        kind = "{kind}"
        train = "train.jsonl"
        validation = "validation.jsonl"
        """,
        folder=folder,
    )


class Recorded(trl.SFTTrainer):
    """SFTTrainer on batches as they are given to it, which keeps every loss.

    Of GPT-2 transformers counts the first token of each row among those that are predicted, since
    its class is called no CausalLM, and divides by too many: set right here.
    """

    def __init__(self, batches: list[Any], *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._loss_shifts_labels = True
        self.batches, self.losses = batches, []

    def get_train_dataloader(self) -> Any:
        return self.batches

    def compute_loss(self, *arguments: Any, **settings: Any) -> Any:
        found = super().compute_loss(*arguments, **settings)
        self.losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
        return found


def trl_losses(
    inputs: StudyInputs, trial: Trial, model: Any, folder: Path, rows: str, **settings: Any
) -> list[float]:
    """SFTTrainer's losses on the study's batches: its own tokens, labels, padding and loss."""
    return trl_run(inputs, trial, model, folder, **settings).losses


def trl_run(
    inputs: StudyInputs, trial: Trial, model: Any, folder: Path, **settings: Any
) -> Recorded:
    """SFTTrainer that has trained on the study's batches."""
    train = inputs.encoded(trial)[0]
    order = rows_of(trial, train, trial.total_steps(len(train)))
    texts = [(inputs.study.folder / f"{x}.jsonl").read_text() for x in ("train", "validation")]
    said, held = ([json.loads(line) for line in text.splitlines()] for text in texts)
    tokenizer = hf.AutoTokenizer.from_pretrained(trial.model)
    given: dict[str, Any] = {
        "max_steps": len(order),
        "per_device_train_batch_size": trial.batch_size,
        "learning_rate": trial.learning_rate,
        "weight_decay": trial.weight_decay,
        "warmup_steps": math.ceil(trial.warmup_ratio * len(order)),
        "lr_scheduler_type": "linear",
        "max_grad_norm": trial.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "max_length": trial.max_length,
    }
    arguments = trl.SFTConfig(output_dir=str(folder), **(given | settings))
    trainer = Recorded(
        [],
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(said),
        eval_dataset=datasets.Dataset.from_list(held),
        processing_class=tokenizer,
    )
    ready = trainer.train_dataset
    trainer.batches = [trainer.data_collator([ready[int(i)] for i in batch]) for batch in order]
    trainer.train()
    return trainer


def peft_of(model: str, adapter: Path, dtype: torch.dtype = torch.float32) -> Any:
    return PeftModel.from_pretrained(stock(model, dtype), adapter, is_trainable=True)


def stock(model: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="eager")


@torch.no_grad()
def mean_loss(model: Any, batches: list[tuple[dict[str, Tensor], Tensor]]) -> float:
    """Over all tokens, from transformers' own loss of each batch."""
    model.eval()
    total = count = 0.0
    for inputs, labels in batches:
        n = int((labels[:, 1:] != -100).sum())
        total += float(model(**inputs, labels=labels).loss.double()) * n
        count += n
    return total / count
