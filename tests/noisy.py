"""PEFT adapters full of noise, for tests that edit trained updates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch

from conftest import TARGETS
from tiny import shake
from training import plain_model

HEADS = {"roberta": "classifier", "bert": "classifier", "gpt2": "score", "llama": "score"}


def adapter(model: str, architecture: str, folder: Path, **settings: Any) -> None:
    """A PEFT adapter full of noise, head included."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=TARGETS[architecture],
        modules_to_save=[HEADS[architecture]],
        fan_in_fan_out=architecture == "gpt2",
        **settings,
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(plain_model(model, torch.float32), config)
        shake(adapted)
        adapted.save_pretrained(folder)
