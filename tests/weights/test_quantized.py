"""Quantised bases: dequantised by their library, or refused by the name of their packing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rankscope.measurement.measure import measure
from tiny import stable_rank

LAYER = "model.layers.0.q_proj"


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


W, B, A = noise(256, 192), noise(256, 4), noise(4, 192)


def check(adapter: Path, base: Path, dense: Tensor, note: str, *, rel: float) -> None:
    """Rows of an adapter on a packed base, against the base's dense values."""
    rows = {row.matrix: row for row in measure(adapter, base=base, rtol=1e-6).rows}
    assert rows["W"].stable_rank == pytest.approx(stable_rank(dense), rel=rel)
    expected = stable_rank(dense + B.double() @ A.double())
    assert rows["W+dW"].stable_rank == pytest.approx(expected, rel=rel)
    assert note in rows["W+dW"].note


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    factors = {f"base_model.model.{LAYER}.lora_{x}.weight": M for x, M in (("A", A), ("B", B))}
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    )
    return folder


@pytest.mark.parametrize("prefix", ["", "base."])
@pytest.mark.parametrize(
    ("ending", "name"),
    [("qweight", "GPTQ or AWQ"), ("weight_packed", "compressed-tensors"), ("SCB", "bitsandbytes")],
)
def test_what_no_library_unpacks_is_refused_by_name(
    adapter: Path, tmp_path: Path, prefix: str, ending: str, name: str
) -> None:
    save_file(
        {f"{prefix}{LAYER}.{ending}": torch.ones(5, 40, dtype=torch.int32)},
        tmp_path / "base.safetensors",
    )
    table = measure(adapter, base=tmp_path / "base.safetensors")
    assert [row.matrix for row in table.rows] == ["dW"]
    if not prefix:
        assert f"packed ({name})" in table.skipped[0].why


@pytest.mark.parametrize(
    ("scale", "name"),
    [
        ((), "weight_scale"),
        ((256,), "weight_scale"),
        ((256, 1), "weight_scale"),
        ((2, 2), "weight_scale_inv"),
    ],
)
def test_float8_is_scaled(adapter: Path, tmp_path: Path, scale: tuple[int, ...], name: str) -> None:
    """By one number, a row or a block of 128 x 128, the last of which is cut."""
    s = noise(*scale).abs() + 0.5
    small = W.to(torch.float8_e4m3fn)
    save_file({f"{LAYER}.weight": small, f"{LAYER}.{name}": s}, tmp_path / "base.safetensors")
    whole = {(): s, (256,): s[:, None] if s.ndim else s}.get(scale, s)
    if scale == (2, 2):
        whole = torch.ones(256, 192)
        for i in range(2):
            for j in range(2):
                whole[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)] = s[i, j]
    dense = small.double() * whole.double()
    check(adapter, tmp_path / "base.safetensors", dense, "W is dequantised from float8", rel=1e-6)


def test_float8_without_or_with_a_strange_scale(adapter: Path, tmp_path: Path) -> None:
    small = W.to(torch.float8_e4m3fn)
    for extra in (
        {},
        {f"{LAYER}.weight_scale": noise(3, 5)},
        {f"{LAYER}.weight_scale": noise(2, 2, 2)},
    ):
        save_file({f"{LAYER}.weight": small} | extra, tmp_path / "base.safetensors")
        table = measure(adapter, base=tmp_path / "base.safetensors")
        assert [row.matrix for row in table.rows] == ["dW"]
        assert (
            "its values are unknown" in table.skipped[0].why
            or "doesn't scale" in table.skipped[0].why
        )


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here"
)
def test_without_the_library_its_name_is_said(adapter: Path, tmp_path: Path) -> None:
    packed = {
        f"{LAYER}.weight": torch.zeros(128 * 192, 1, dtype=torch.uint8),
        f"{LAYER}.weight.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8),
    }
    save_file(packed, tmp_path / "base.safetensors")
    (skipped,) = measure(adapter, base=tmp_path / "base.safetensors").skipped
    assert "packed (bitsandbytes nf4): type pip install bitsandbytes" in skipped.why


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nf4 twice", "int8"])
def test_bitsandbytes(adapter: Path, tmp_path: Path, kind: str) -> None:
    functional = pytest.importorskip(
        "bitsandbytes.functional", reason="needs the extra: pip install rankscope[bitsandbytes]"
    )
    if kind == "int8":
        packed, scale, _ = functional.int8_vectorwise_quant(W.half())
        stored = {f"{LAYER}.weight": packed, f"{LAYER}.SCB": scale}
        dense = packed.double() * scale[:, None].double() / 127
    else:
        packed, state = functional.quantize_4bit(
            W, quant_type=kind[:3], compress_statistics="twice" in kind
        )
        parts = state.as_dict(packed=True)
        stored = {f"{LAYER}.weight": packed} | {
            f"{LAYER}.weight.{name}": t for name, t in parts.items()
        }
        dense = functional.dequantize_4bit(packed, state).double()
        assert (dense - W).norm() < 0.2 * W.norm()
    save_file(
        {name: tensor.contiguous() for name, tensor in stored.items()},
        tmp_path / "base.safetensors",
    )
    check(
        adapter,
        tmp_path / "base.safetensors",
        dense,
        "W is dequantised from bitsandbytes",
        rel=1e-5,
    )
