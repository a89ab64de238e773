"""loralib's checkpoints, which carry no scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankscope.measure import measure
from weights.tiny import roberta, stable_rank

LAYER = "roberta.encoder.layer.0.attention.self.query"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{LAYER}.lora_A": torch.randn(4, 24, generator=generator),
        f"{LAYER}.lora_B": torch.randn(24, 4, generator=generator),
        "classifier.dense.weight": torch.randn(24, 24, generator=generator),
        "classifier.dense.bias": torch.zeros(24),
    }
    torch.save(tensors, tmp_path / "lora.bin")
    return tmp_path / "lora.bin"


def test_the_scale_is_given_or_assumed_and_said(checkpoint: Path, tmp_path: Path) -> None:
    roberta().save_pretrained(tmp_path / "base")
    assumed = measure(checkpoint, base=tmp_path / "base").rows
    given = measure(checkpoint, base=tmp_path / "base", alpha=16).rows
    assert (assumed[1].scale, given[1].scale) == (1, 4)
    assert "scale 1 (alpha = r) assumed; give alpha=" in assumed[1].note
    assert given[1].note is None
    assert assumed[1].stable_rank == pytest.approx(given[1].stable_rank, rel=1e-12)
    tensors = torch.load(checkpoint, weights_only=True)
    W = next(row for row in given if row.matrix == "W")
    assert W.note is None
    BA = tensors[f"{LAYER}.lora_B"].double() @ tensors[f"{LAYER}.lora_A"].double()
    assert given[1].frobenius_norm == pytest.approx(4 * float(BA.norm()), rel=1e-9)
    assert [row.matrix for row in given if row.layer == "classifier.dense"] == ["W", "dW", "W+dW"]


def test_a_merged_checkpoint_is_noticed(checkpoint: Path) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    torch.save(tensors | {f"{LAYER}.weight": torch.ones(24, 24)}, checkpoint)
    assert "saved after .eval(), it contains s B A already" in measure(checkpoint).rows[0].note


def test_fused_projections_are_named_not_measured(checkpoint: Path) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    torch.save(tensors | {"attn.lora_A": torch.ones(8, 24), "attn.lora_B": torch.ones(48, 4)}, checkpoint)
    table = measure(checkpoint)
    assert "MergedLinear: 2 fused projections" in {s.layer: s.why for s in table.skipped}["attn"]


def test_the_lora_papers_own_checkpoint(real_adapters: Path) -> None:
    file = real_adapters / "roberta-base-mnli-r8-microsoft" / "roberta_base_lora_mnli.bin"
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    table = measure(file, alpha=16)
    assert len(table.rows) == 24
    assert {(row.r, row.scale) for row in table.rows} == {(8, 2.0)}
    assert {s.layer for s in table.skipped} == {
        "classifier.dense", "classifier.dense.bias", "classifier.out_proj", "classifier.out_proj.bias"
    }  # fmt: skip
    for row in table.rows[::6]:
        BA = tensors[f"{row.layer}.lora_B"].double() @ tensors[f"{row.layer}.lora_A"].double()
        assert row.stable_rank == pytest.approx(stable_rank(BA), rel=1e-9)
