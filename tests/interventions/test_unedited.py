"""Weights of a full fine-tune that are no linear layers: refused where they are experts, else left
as trained, and said so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, JetMoeConfig

from families import DECODER, FAMILIES
from rankscope.evaluation.trained import read_trained
from rankscope.interventions.bench import Bench
from rankscope.interventions.settings import Settings
from rankscope.train.data import Encoded
from rankscope.train.loading import load_model
from training import CPU, TASK


def shaken(model: Any, folder: Path) -> str:
    """A base in ``folder``/base, a full fine-tune of it in ``folder``/full. -> the base's path"""
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder / "full")
    return str(folder / "base")


def test_stacks_by_other_names_are_refused(tmp_path: Path) -> None:
    """JetMoe's experts stand in ``mlp.input_linear.weight`` (E, m, n)."""
    config = JetMoeConfig(**DECODER, num_local_experts=3, num_experts_per_tok=2)
    path = shaken(AutoModelForSequenceClassification.from_config(config), tmp_path)
    with pytest.raises(ValueError, match=r"mlp.*_linear\.weight can't be edited: it is a stack"):
        read_trained(tmp_path / "full", load_model(path, TASK), TASK, base_path=path)


def test_what_no_edit_changes_is_said_once(tmp_path: Path) -> None:
    """XLNet's attention is in no linear layer."""
    path, lines = shaken(FAMILIES["xlnet"].model(), tmp_path), list[str]()
    ids = torch.ones(2, 3, dtype=torch.long)
    rows = Encoded(
        {"input_ids": ids, "attention_mask": ids},
        torch.zeros(2, dtype=torch.long),
        torch.tensor([3, 3]),
    )
    bench = Bench(path, TASK, rows, rows, Settings(), device=CPU, say=lines.append)
    for _ in range(2):
        opened = bench.open(tmp_path / "full")
        assert "transformer.layer.0.rel_attn.q" in opened.unedited
        assert "transformer.layer.0.ff.layer_1" in opened.updates
    (line,) = lines
    assert re.match(r"\d+ weights stay as trained in every edit, such as transformer\.", line)
