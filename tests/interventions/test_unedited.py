"""Weights of a full fine-tune that are neither linear layers nor experts: left as trained, and
said so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from families import FAMILIES
from rankscope.interventions.bench import Bench
from rankscope.interventions.settings import Settings
from rankscope.train.data import Encoded
from training import CPU, TASK


def shaken(model: Any, folder: Path) -> str:
    """A base in ``folder``/base, a full fine-tune of it in ``folder``/full. -> the base's path"""
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder / "full")
    return str(folder / "base")


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
