"""loralib's checkpoints, which carry no scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankscope.measurement.measure import measure
from tiny import roberta, stable_rank

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
    assert "saved after .eval(), it already contains s B A" in measure(checkpoint).rows[0].note


@pytest.mark.parametrize(
    ("enabled", "fan_in"), [([True, False, True], True), ([True] * 3, True), ([True] * 2, False)]
)
def test_fused_projections_are_blocks(tmp_path: Path, enabled: list[bool], fan_in: bool) -> None:
    """MergedLinear as loralib merges it: a grouped convolution, zeros where a projection isn't
    adapted."""
    g, slots, r, n, o = sum(enabled), len(enabled), 3, 12, 8
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(g * r, n, generator=generator), torch.randn(g * o, r, generator=generator)
    W = torch.randn(slots * o, n, generator=generator)
    merged = torch.nn.functional.conv1d(A[None], B[..., None], groups=g)[0]  # (g o, n)
    dW = torch.zeros(slots, o, n)
    dW[torch.tensor(enabled)] = merged.reshape(g, o, n)
    dW = 16 / r * dW.reshape(slots * o, n).double()
    name = "h.0.attn.c_attn" if fan_in else "attn"
    torch.save({f"{name}.lora_A": A, f"{name}.lora_B": B}, tmp_path / "lora.pt")
    (tmp_path / "base").mkdir()
    save_file(
        {f"{name}.weight": W.mT.contiguous() if fan_in else W},
        tmp_path / "base" / "model.safetensors",
    )
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gpt2"}')
    rows = {
        row.matrix: row
        for row in measure(tmp_path / "lora.pt", base=tmp_path / "base", alpha=16, rtol=1e-7).rows
    }
    for matrix, M in {"W": W.double(), "dW": dW, "W+dW": W + dW}.items():
        assert rows[matrix].stable_rank == pytest.approx(stable_rank(M), rel=1e-6)
        assert rows[matrix].frobenius_norm == pytest.approx(float(M.norm()), rel=1e-6)
        assert rows[matrix].shape == ((n, slots * o) if fan_in else (slots * o, n))
    assert (rows["dW"].r, rows["dW"].scale) == (g * r, 16 / r)
    assert f"MergedLinear: {g} fused projections of rank 3" in rows["dW"].note
    alone = measure(tmp_path / "lora.pt", alpha=16).rows[0]
    assert alone.stable_rank == pytest.approx(rows["dW"].stable_rank, rel=1e-9)


def test_fused_projections_that_can_not_be_placed(tmp_path: Path) -> None:
    """Two of four: dW's own stable rank doesn't depend on which, that of W + dW does."""
    torch.save(
        {"attn.lora_A": torch.randn(4, 6), "attn.lora_B": torch.randn(10, 2)}, tmp_path / "lora.pt"
    )
    save_file({"attn.weight": torch.randn(20, 6)}, tmp_path / "base.safetensors")
    table = measure(tmp_path / "lora.pt", base=tmp_path / "base.safetensors")
    assert [row.matrix for row in table.rows] == ["dW"]
    assert "(enable_lora) is not in the file" in table.skipped[0].why


def test_a_folder_that_holds_the_file_says_so(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"Name its file: \S*lora\.bin$"):
        measure(checkpoint.parent)


def test_the_lora_papers_own_checkpoint(real_adapters: Path) -> None:
    file = real_adapters / "roberta-base-mnli-r8-microsoft" / "roberta_base_lora_mnli.bin"
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    table = measure(file, alpha=16)
    assert len(table.rows) == 24
    assert {(row.r, row.scale) for row in table.rows} == {(8, 2.0)}
    assert {s.layer for s in table.skipped} == {
        "classifier.dense", "classifier.dense.bias", "classifier.out_proj",
        "classifier.out_proj.bias"
    }  # fmt: skip
    for row in table.rows[::6]:
        BA = tensors[f"{row.layer}.lora_B"].double() @ tensors[f"{row.layer}.lora_A"].double()
        assert row.stable_rank == pytest.approx(stable_rank(BA), rel=1e-9)
