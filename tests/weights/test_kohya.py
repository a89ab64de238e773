"""LoRA files of kohya, ComfyUI and diffusers, in all their spellings: dense float64 dW, and the
right W."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rankscope.measurement.measure import measure
from rankscope.measurement.resize import resize
from rankscope.measurement.table import Table
from tiny import stable_rank

BLOCK = "down_blocks.0.attentions.1.transformer_blocks.0"
QUERY, CONV, OUT = f"{BLOCK}.attn1.to_q", "down_blocks.0.resnets.0.conv1", f"{BLOCK}.attn1.to_out.0"
TEXT = "text_model.encoder.layers.3.self_attn.q_proj"


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


B, A = noise(20, 4), noise(4, 12)
BA, W = B.double() @ A.double(), noise(20, 12)


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    """A diffusers model, as a folder."""
    (tmp_path / "unet").mkdir()
    weights = {
        f"{QUERY}.weight": W,
        f"{OUT}.weight": W.clone(),
        f"{CONV}.weight": noise(10, 6, 3, 3),
        f"{BLOCK}.attn2.to_q.weight": noise(20, 12) + 1,
    }
    save_file(weights, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    return tmp_path / "unet"


def written(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file(
        {n: t.clone() for n, t in tensors.items()}, folder / "lora.safetensors", metadata=metadata
    )
    return folder / "lora.safetensors"


def check(table: Table, layer: str, scale: float, dW: Tensor, before: Tensor) -> None:
    rows = {row.matrix: row for row in table.rows if row.layer == layer}
    assert set(rows) == {"W", "dW", "W+dW"}, (table.rows, table.skipped)
    dense = {
        "W": before.double(),
        "dW": scale * dW.double(),
        "W+dW": before.double() + scale * dW.double(),
    }
    for matrix, M in dense.items():
        assert rows[matrix].stable_rank == pytest.approx(stable_rank(M), rel=1e-6)
        assert rows[matrix].frobenius_norm == pytest.approx(float(M.norm()), rel=1e-6)
    assert (rows["dW"].scale, rows["dW"].read_from) == (pytest.approx(scale), "factors")


KOHYA = f"lora_unet_{QUERY.replace('.', '_')}"
SPELLINGS = {
    "kohya": (f"{KOHYA}.lora_up.weight", f"{KOHYA}.lora_down.weight", f"{KOHYA}.alpha"),
    "comfyui": (f"diffusion_model.{QUERY}.lora_up.weight",
                                   f"diffusion_model.{QUERY}.lora_down.weight",
                f"diffusion_model.{QUERY}.alpha"),
    "diffusers": (f"unet.{QUERY}.lora_B.weight", f"unet.{QUERY}.lora_A.weight",
                                                         f"unet.{QUERY}.alpha"),
    "diffusers, an adapter's name": (f"unet.{QUERY}.lora_B.default.weight",
                                             f"unet.{QUERY}.lora_A.default.weight",
                                     f"unet.{QUERY}.alpha"),
    "diffusers, up and down": (f"unet.{QUERY}.lora.up.weight", f"unet.{QUERY}.lora.down.weight",
                                                                       f"unet.{QUERY}.alpha"),
    "diffusers, linear layer": (f"unet.{QUERY}.lora_linear_layer.up.weight",
                                f"unet.{QUERY}.lora_linear_layer.down.weight",
                                f"unet.{QUERY}.alpha"),
    "diffusers, processor": (f"unet.{BLOCK}.attn1.processor.to_q_lora.up.weight",
                             f"unet.{BLOCK}.attn1.processor.to_q_lora.down.weight",
                             f"unet.{QUERY}.alpha"),
}  # fmt: skip


@pytest.mark.parametrize("spelling", list(SPELLINGS))
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_every_spelling_is_read_with_its_scale(
    tmp_path: Path, unet: Path, spelling: str, alpha: float | None
) -> None:
    up, down, named = SPELLINGS[spelling]
    tensors = {up: B, down: A} | ({named: torch.tensor(alpha)} if alpha else {})
    table = measure(written(tmp_path, tensors), base=unet, rtol=1e-7)
    layer = table.rows[0].layer
    check(table, layer, 1.0 if alpha is None else alpha / 4, BA, W)
    assert layer.removeprefix("unet.").removeprefix("diffusion_model.") == QUERY
    note = next(row.note for row in table.rows if row.matrix == "dW")
    assert (note is None) == (alpha is not None)
    alone = measure(tmp_path / "lora.safetensors").rows
    assert [row.matrix for row in alone] == ["dW"]
    assert alone[0].stable_rank == pytest.approx(stable_rank(BA), rel=1e-9)


def test_a_step_into_a_list_that_old_files_leave_out(tmp_path: Path, unet: Path) -> None:
    name = f"unet.{BLOCK}.attn1.processor.to_out_lora"
    table = measure(
        written(tmp_path, {f"{name}.up.weight": B, f"{name}.down.weight": A}), base=unet, rtol=1e-7
    )
    check(table, f"unet.{BLOCK}.attn1.to_out", 1.0, BA, W)


def test_convolutions_with_and_without_a_middle(tmp_path: Path, unet: Path) -> None:
    flat = f"lora_unet_{CONV.replace('.', '_')}"
    up, down, kernel = noise(10, 4, 1, 1), noise(4, 6, 1, 1), noise(10, 6, 3, 3).flatten(1)
    wide = noise(4, 6, 3, 3)
    tensors = {
        f"{flat}.lora_up.weight": up,
        f"{flat}.lora_down.weight": wide,
        f"{flat}.alpha": torch.tensor(8.0),
    }
    check(
        measure(written(tmp_path, tensors), base=unet, rtol=1e-7),
        CONV,
        2.0,
        up.flatten(1) @ wide.flatten(1),
        kernel,
    )
    middle = noise(4, 4, 3, 3)
    tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_mid.weight": middle}
    # up(mid(down(x))), on all unit inputs: the kernel of the three as one.
    dense = torch.einsum("op,pqhw,qi->oihw", up.flatten(1), middle, down.flatten(1)).flatten(1)
    check(measure(written(tmp_path, tensors), base=unet, rtol=1e-7), CONV, 2.0, dense, kernel)


def test_a_pipeline_is_the_base_of_all_its_models(tmp_path: Path, unet: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "text_encoder").mkdir()
    save_file({f"{TEXT}.weight": W * 2}, tmp_path / "text_encoder" / "model.safetensors")
    flat = TEXT.replace(".", "_")
    for prefix in ("lora_te", "lora_te1"):
        tensors = {f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.lora_down.weight": A}
        tensors |= {f"{prefix}_{flat}.lora_up.weight": B, f"{prefix}_{flat}.lora_down.weight": A}
        table = measure(written(tmp_path, tensors), base=tmp_path, rtol=1e-7)
        check(table, f"unet.{QUERY}", 1.0, BA, W)
        check(table, f"text_encoder.{TEXT}", 1.0, BA, W * 2)


def test_two_text_encoders_of_one_architecture_are_told_apart(tmp_path: Path, unet: Path) -> None:
    """Of SDXL: their layers have the same names inside, so that only te1 and te2 tell them
    apart."""
    (tmp_path / "model_index.json").write_text("{}")
    encoders = {"te1": ("text_encoder", W * 2), "te2": ("text_encoder_2", W * 3)}
    tensors = {}
    for i, (prefix, (folder, weight)) in enumerate(encoders.items(), start=1):
        (tmp_path / folder).mkdir()
        save_file({f"{TEXT}.weight": weight}, tmp_path / folder / "model.safetensors")
        name = f"lora_{prefix}_{TEXT.replace('.', '_')}"
        tensors |= {f"{name}.lora_up.weight": i * B, f"{name}.lora_down.weight": A}
    table = measure(written(tmp_path, tensors), base=tmp_path, rtol=1e-7)
    check(table, f"text_encoder.{TEXT}", 1.0, BA, W * 2)
    check(table, f"text_encoder_2.{TEXT}", 1.0, 2 * BA, W * 3)


def test_diffusers_own_metadata_give_the_scale(tmp_path: Path, unet: Path) -> None:
    config: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "alpha_pattern": {"attn1.to_q": 6},
    }
    metadata = json.dumps({f"unet.{name}": value for name, value in config.items()})
    other = f"unet.{BLOCK}.attn2.to_q"
    tensors = {f"unet.{QUERY}.lora_B.weight": B, f"unet.{QUERY}.lora_A.weight": A}
    tensors |= {f"{other}.lora_B.weight": B, f"{other}.lora_A.weight": A}
    rows = measure(written(tmp_path, tensors, lora_adapter_metadata=metadata), base=unet).rows
    scales = {row.layer: row.scale for row in rows if row.matrix == "dW"}
    assert scales == {f"unet.{QUERY}": 6 / 2, other: 8 / 2}
    assert all(row.note is None for row in rows)


def test_a_folder_as_diffusers_saves_it(tmp_path: Path, unet: Path) -> None:
    (tmp_path / "saved").mkdir()
    tensors = {f"unet.{QUERY}.lora_B.weight": B, f"unet.{QUERY}.lora_A.weight": A}
    save_file(tensors, tmp_path / "saved" / "pytorch_lora_weights.safetensors")
    check(measure(tmp_path / "saved", base=unet, rtol=1e-7), f"unet.{QUERY}", 1.0, BA, W)


def test_what_else_such_files_hold_is_named(tmp_path: Path, unet: Path) -> None:
    tensors = {
        f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.lora_down.weight": A,
        "lora_unet_x.oft_blocks": noise(2, 4, 4), "lora_unet_x.alpha": torch.tensor(1.0),
        "emb_params": noise(3, 4),
    }  # fmt: skip
    table = measure(written(tmp_path, tensors), base=unet)
    assert {row.layer for row in table.rows} == {QUERY}
    whys = {s.layer: s.why for s in table.skipped}
    assert "LyCORIS (oft_blocks)" in whys["lora_unet_x"]
    assert {"emb_params", "lora_unet_x.alpha"} <= set(whys)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{KOHYA}.lora_up.weight": B}, "expected lora_down beside lora_up"),
        ({f"{KOHYA}.lora_down.weight": A}, "expected lora_up beside lora_down"),
        (
            {f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.lora_down.weight": noise(5, 12)},
            "with one r for",
        ),
        (
            {
                f"{KOHYA}.lora_up.weight": B,
                f"{KOHYA}.lora_down.weight": A,
                f"{KOHYA}.alpha": noise(2),
            },
            "expected one number as",
        ),
        (
            {
                f"{KOHYA}.lora_up.weight": B,
                f"{KOHYA}.lora_down.weight": A,
                f"{KOHYA}.alpha": torch.tensor(torch.nan),
            },
            "expected one number as",
        ),
        ({"lora_unet_x.lokr_w1": A}, "expected lokr_w2_a beside another part for lora_unet_x"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, tensors: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=r"lora\.safetensors: ") as caught:
        measure(written(tmp_path, tensors))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="expected JSON as lora_adapter_metadata"):
        measure(
            written(
                tmp_path,
                {f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.lora_down.weight": A},
                lora_adapter_metadata="{",
            )
        )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([], "expected a JSON object as lora_adapter_metadata; found list"),
        ({"unet.r": 9, "unet.lora_alpha": 4}, "expected r = 3 for x, by its factors; found r = 9"),
        ({"unet.r": 3, "unet.rank_pattern": {"x": 2}}, "expected r = 3 for x, by its factors"),
        ({"unet.r": 3, "unet.use_dora": True}, "expected lora_magnitude_vector of x, as use_dora"),
        ({"unet.r": 3, "unet.use_rslora": "no"}, "expected use_rslora to be true or false"),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_factors(tmp_path: Path, settings: Any, says: str) -> None:
    tensors = {"unet.x.lora_B.weight": noise(8, 3), "unet.x.lora_A.weight": noise(3, 6)}
    path = written(tmp_path, tensors, lora_adapter_metadata=json.dumps(settings))
    for reading in (measure, lambda source: resize(source, to=tmp_path / "out", rank=1)):
        with pytest.raises(ValueError, match="expected") as caught:
            reading(path)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_with_such_words_in_it_is_still_a_checkpoint(tmp_path: Path) -> None:
    tensors = {"mlp.up.weight": B, "mlp.down.weight": A, "act.alpha": noise(3), "b1.weight": W}
    assert {row.matrix for row in measure(written(tmp_path, tensors)).rows} == {"W"}
