"""Less common forms of the formats, each with the right value of a float64 SVD of dW and W + dW
formed in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rankscope.measurement.measure import measure
from rankscope.weights.flat_names import as_diffusers
from weights.test_lora_formats import check, folder, notes, randn

LAYER = "lora_unet_blocks_0_attn"
PEFT = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}


def kohya(path: Path, parts: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({f"{LAYER}.{name}": part for name, part in parts.items()}, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("beside", "scale"),
    [
        ({"scale": 0.25}, 0.25),
        ({"scale": 0.25, "alpha": 9.0}, 0.25),
        ({"scalar": 0.5, "alpha": 9.0}, 1.5),
        ({"scalar": -0.5, "scale": 4.0}, -2.0),
    ],
)
def test_a1111s_scale_and_lycoris_scalar(
    tmp_path: Path, beside: dict[str, float], scale: float
) -> None:
    A, B = randn(3, 20), randn(24, 3)
    numbers = {name: torch.tensor(value) for name, value in beside.items()}
    source = kohya(
        tmp_path / "x.safetensors", {"lora_up.weight": B, "lora_down.weight": A} | numbers
    )
    table = measure(source)
    check(table, LAYER, scale * B @ A)
    assert table.rows[0].scale == pytest.approx(scale)


def test_a_scale_of_whole_kronecker_factors(tmp_path: Path) -> None:
    w1, w2 = randn(4, 4), randn(6, 5)
    parts = {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(1e10), "scale": torch.tensor(0.5)}
    check(measure(kohya(tmp_path / "x.safetensors", parts)), LAYER, 0.5 * torch.kron(w1, w2))


def test_a_scale_of_two_numbers(tmp_path: Path) -> None:
    parts = {"lora_up.weight": randn(24, 3), "lora_down.weight": randn(3, 20), "scale": randn(2)}
    with pytest.raises(ValueError, match=r"expected one number as lora_unet_blocks_0_attn\.scale"):
        measure(kohya(tmp_path / "x.safetensors", parts))


def test_an_alpha_that_stands_in_the_header_alone_is_named(tmp_path: Path) -> None:
    A, B = randn(3, 20), randn(24, 3)
    parts = {"lora_up.weight": B, "lora_down.weight": A}
    table = measure(kohya(tmp_path / "x.safetensors", parts, {"ss_network_alpha": "1.5"}))
    check(table, LAYER, B @ A)
    assert "its header has ss_network_alpha '1.5'" in str(notes(table))


@pytest.mark.parametrize(
    "parts",
    [
        {"a1.weight": (24, 3), "a2.weight": (3, 24), "b1.weight": (24, 3), "b2.weight": (3, 20)},
        {"oft_blocks": (2, 4, 4), "alpha": ()},
        {"on_input": (), "weight": (24, 1)},
    ],
)
def test_lycoris_that_is_no_low_rank_update_is_no_table_of_weights(
    tmp_path: Path, parts: dict[str, tuple[int, ...]]
) -> None:
    tensors = {name: torch.ones(shape) for name, shape in parts.items()}
    with pytest.raises(ValueError, match="found LyCORIS's"):
        measure(kohya(tmp_path / "x.safetensors", tensors))


def test_a_models_own_a1_and_b1_are_weights(tmp_path: Path) -> None:
    save_file(
        {"mlp.a1.weight": randn(24, 20), "mlp.b1.weight": randn(24, 20)}, tmp_path / "x.safetensors"
    )
    assert {row.matrix for row in measure(tmp_path / "x.safetensors").rows} == {"W"}


# Stable Diffusion XL's layers by their original and by diffusers' names.
NAMES = {
    "input_blocks.4.1.transformer_blocks.0.attn1.to_q":
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks.7.0.in_layers.2": "down_blocks.2.resnets.0.conv1",
    "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
    "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
    "middle_block.2.emb_layers.1": "mid_block.resnets.1.time_emb_proj",
    "output_blocks.5.1.transformer_blocks.1.ff.net.0.proj":
        "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj",
    "output_blocks.2.2.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.3.0.skip_connection": "up_blocks.1.resnets.0.conv_shortcut",
    "time_embed.2": "time_embedding.linear_2",
}  # fmt: skip


@pytest.mark.parametrize("file_of_original", [True, False])
def test_both_namings_of_stable_diffusions_blocks(tmp_path: Path, file_of_original: bool) -> None:
    """kohya's file has one naming, the base the other."""
    tensors: dict[str, Tensor] = {}
    base, updates = {}, {}
    for original, other in NAMES.items():
        A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
        mine, theirs = (original, other) if file_of_original else (other, original)
        flat = f"lora_unet_{mine.replace('.', '_')}"
        tensors |= {f"{flat}.lora_up.weight": B, f"{flat}.lora_down.weight": A}
        tensors[f"{flat}.alpha"] = torch.tensor(6.0)
        name = theirs if file_of_original else f"model.diffusion_model.{theirs}"
        base[f"{name}.weight"], updates[name] = W, 2 * B @ A
    save_file(tensors, tmp_path / "lora.safetensors")
    save_file(base, tmp_path / "base.safetensors")
    table = measure(tmp_path / "lora.safetensors", base=tmp_path / "base.safetensors")
    for name, dW in updates.items():
        check(table, name, dW, base[f"{name}.weight"])


def test_other_flat_names_stay() -> None:
    for name in ("blocks_0_attn_to_out_0", "down_blocks_1_attentions_0_proj_in", "output_0"):
        assert as_diffusers(name) == name


def test_the_text_encoders_of_a_single_file(tmp_path: Path) -> None:
    """The second one's W is not taken from the first, whose layers have the same names."""
    A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
    tensors: dict[str, Tensor] = {}
    for flat in (
        "lora_te1_text_model_encoder_layers_0_q",
        "lora_te2_text_model_encoder_layers_0_q",
    ):
        tensors |= {f"{flat}.lora_up.weight": B.clone(), f"{flat}.lora_down.weight": A.clone()}
    save_file(tensors, tmp_path / "lora.safetensors")
    own = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.q"
    save_file({f"{own}.weight": W}, tmp_path / "base.safetensors")
    table = measure(tmp_path / "lora.safetensors", base=tmp_path / "base.safetensors")
    check(table, own, B @ A, W)
    check(table, "lora_te2_text_model_encoder_layers_0_q", B @ A)


class TestLoralib:
    def save(self, path: Path, layer: str, A: Tensor, B: Tensor, W: Tensor) -> tuple[Path, Path]:
        torch.save({f"{layer}.lora_A": A, f"{layer}.lora_B": B}, path / "lora.pt")
        torch.save({f"{layer}.weight": W}, path / "base.pt")
        return path / "lora.pt", path / "base.pt"

    def test_a_convolution(self, tmp_path: Path) -> None:
        """(B A).view(weight.shape) of B (out k, r k) and A (r k, in k); alpha is divided by r."""
        r, k = 2, 3
        A, B, W = randn(r * k, 6 * k), randn(8 * k, r * k), randn(8, 6, k, k)
        source, base = self.save(tmp_path, "conv", A, B, W)
        table = measure(source, base=base, alpha=5)
        check(table, "conv", (5 / r * B @ A).view(8, 6, k, k), W)
        assert "reshaped to the kernel" in str(notes(table))
        assert "--base MODEL" in str(notes(measure(source, alpha=5)))

    @pytest.mark.parametrize("layer", ["word_embeddings", "h.0.mlp.c_fc"])
    def test_what_is_stored_in_out_is_told_by_its_shape(self, tmp_path: Path, layer: str) -> None:
        A, B, W = randn(3, 50), randn(20, 3), randn(50, 20)
        source, base = self.save(tmp_path, layer, A, B, W)
        check(measure(source, base=base, alpha=6), layer, 2 * (B @ A).T, W)

    def test_fused_projections_stored_in_out(self, tmp_path: Path) -> None:
        A, B, W = randn(6, 20), randn(16, 3), randn(20, 24)
        source, base = self.save(tmp_path, "h.0.attn.c_attn", A, B, W)
        dW = torch.zeros(24, 20, dtype=torch.float64)
        dW[:8], dW[16:] = B[:8] @ A[:3], B[8:] @ A[3:]
        check(measure(source, base=base, alpha=3), "h.0.attn.c_attn", dW.T, W)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.base_model.model.",
        "pretrained_model.base_model.model.model.",
        "actor.module.base_model.model.",
    ],
)
def test_what_a_trainer_puts_before_pefts_prefix(tmp_path: Path, prefix: str) -> None:
    A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
    inner = "model." if prefix.endswith("model.model.model.") else ""
    layer = f"{inner}layers.0.q"
    name = f"{prefix}layers.0.q"
    state = {
        f"{name}.base_layer.weight": W,
        f"{name}.lora_A.task.weight": A,
        f"{name}.lora_B.task.weight": B,
    }
    source = folder(tmp_path / "a", PEFT, "pytorch_model.bin", state)
    check(measure(source), layer, 2 * B @ A, W)
    save_file({f"{layer}.weight": W}, tmp_path / "base.safetensors")
    check(measure(source, base=tmp_path / "base.safetensors"), layer, 2 * B @ A, W)


def test_an_adapter_in_shards(tmp_path: Path) -> None:
    factors = [(randn(3, 20), randn(24, 3)) for _ in "ab"]
    source = folder(
        tmp_path / "a", PEFT, "adapter_model-00001-of-00002.safetensors", {"x": randn(1)}
    )
    places = {}
    for i, (A, B) in enumerate(factors):
        file = f"adapter_model-0000{i + 1}-of-00002.safetensors"
        names = {f"base_model.model.h.{i}.q.lora_{x}.weight": M for x, M in (("A", A), ("B", B))}
        save_file(names, source / file)
        places |= dict.fromkeys(names, file)
    index = source / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for one in (source, index):
        table = measure(one)
        for i, (A, B) in enumerate(factors):
            check(table, f"h.{i}.q", 2 * B @ A)


class TestMlxBases:
    """Quantised as mlx.core.quantize does: groups of a row share scale and bias; W is float32."""

    L = "model.layers.0.self_attn.q_proj"

    def packed(self, bits: int, group: int) -> tuple[dict[str, Tensor], Tensor]:
        """The tensors of a weight (24, 192), and what they stand for, packed number by number."""
        m, n = 24, 192
        q = torch.randint(0, 2**bits, (m, n), generator=torch.Generator().manual_seed(bits))
        scales, biases = randn(m, n // group), randn(m, n // group)
        words = np.zeros((m, n * bits // 32), dtype=np.uint32)
        for row in range(m):
            stream = 0
            for j in range(n):
                stream |= int(q[row, j]) << (j * bits)
            for w in range(words.shape[1]):
                words[row, w] = (stream >> (32 * w)) & 0xFFFFFFFF
        parts = {
            "weight": torch.from_numpy(words),
            "scales": scales.float(),
            "biases": biases.float(),
        }
        wide = (
            scales.float().repeat_interleave(group, 1),
            biases.float().repeat_interleave(group, 1),
        )
        return {f"{self.L}.{k}": v for k, v in parts.items()}, wide[0] * q + wide[1]

    def adapter(self, path: Path) -> tuple[Path, Tensor]:
        A, B = randn(192, 3), randn(3, 24)
        config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 3, "scale": 20.0}}
        tensors = {f"{self.L}.lora_a": A, f"{self.L}.lora_b": B}
        return folder(path / "adapter", config, "adapters.safetensors", tensors), 20 * (A @ B).T

    @pytest.mark.parametrize(
        ("bits", "group"), [(4, 64), (8, 32), (3, 64), (6, 32), (2, 96), (5, 64)]
    )
    def test_the_right_numbers(self, tmp_path: Path, bits: int, group: int) -> None:
        tensors, W = self.packed(bits, group)
        adapter, dW = self.adapter(tmp_path)
        base = tmp_path / "base"
        base.mkdir()
        save_file(tensors, base / "model.safetensors")
        other = {"bits": 7 - bits % 5, "group_size": 128}
        for given in (
            {"bits": bits, "group_size": group},
            {**other, self.L: {"bits": bits, "group_size": group}},
        ):
            (base / "config.json").write_text(json.dumps({"quantization": given}))
            table = measure(adapter, base=base)
            check(table, self.L, dW, W)
            assert "dequantised from MLX" in str(notes(table))

    @pytest.mark.parametrize(
        "given",
        [None, {"bits": 4}, {"bits": 9, "group_size": 64}, {"bits": 4, "group_size": 0},
         {"bits": 4, "group_size": 32}, {"bits": [4], "group_size": 64},
         {"bits": 4, "group_size": -64}],
    )  # fmt: skip
    def test_without_fitting_settings_it_is_said(self, tmp_path: Path, given: object) -> None:
        tensors, _ = self.packed(4, 64)
        adapter, dW = self.adapter(tmp_path)
        base = tmp_path / "base"
        base.mkdir()
        save_file(tensors, base / "model.safetensors")
        (base / "config.json").write_text(json.dumps({"quantization": given} if given else {}))
        table = measure(adapter, base=base)
        check(table, self.L, dW)
        assert ["packed (MLX)" in one.why for one in table.skipped] == [True]


def test_mlxs_first_configurations_are_named(tmp_path: Path) -> None:
    config = {"model": "x", "lora_layers": 16, "rank": 3, "scale": 5.0}
    tensors = {"q.lora_a": randn(20, 3), "q.lora_b": randn(3, 24)}
    source = folder(tmp_path / "a", config, "adapters.npz", tensors)
    with pytest.raises(ValueError, match="expected lora_parameters with rank and scale"):
        measure(source)


def test_pefts_names_with_an_alpha_in_the_file_need_no_configuration(tmp_path: Path) -> None:
    A, B = randn(3, 20), randn(24, 3)
    name = "base_model.model.h.0.q"
    tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    save_file(tensors | {f"{name}.alpha": torch.tensor(6.0)}, tmp_path / "x.safetensors")
    check(measure(tmp_path / "x.safetensors"), name, 2 * B @ A)


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (["latest", "zero_to_fp32.py", "global_step5/x.pt"], r"python zero_to_fp32\.py"),
        (["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"], "DeepSpeed"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["__0_0.distcp", ".metadata"], "accelerate merge-weights"),
        (["checkpoint-500/model.safetensors"], "--subfolder checkpoint-500"),
        (["checkpoint-9/model.safetensors.index.json"], "--subfolder checkpoint-9"),
    ],
)
def test_what_to_type_for_other_checkpoints(tmp_path: Path, files: list[str], advice: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=advice):
        measure(tmp_path)


def test_parameters_that_zero_3_left_empty(tmp_path: Path) -> None:
    torch.save({"module": {"q.weight": torch.empty(0)}}, tmp_path / "x_model_states.pt")
    (skipped,) = measure(tmp_path / "x_model_states.pt").skipped
    assert "is empty" in skipped.why


@pytest.mark.parametrize("reshape", [lambda M: M.flatten(), lambda M: M[None], lambda M: M[:, :0]])
@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_factors_of_another_shape_than_matrices(tmp_path: Path, kind: str, reshape: Any) -> None:
    """An axis too many would broadcast to the shape of another layer."""
    shapes = {
        "loha": {"hada_w1_a": (24, 2), "hada_w1_b": (2, 20), "hada_w2_a": (24, 2),
                 "hada_w2_b": (2, 20)},
        "lokr": {"lokr_w1": (4, 4), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 5)},
    }[kind]  # fmt: skip
    first = next(iter(shapes))
    parts = {name: randn(*shape) for name, shape in shapes.items()}
    parts[first] = reshape(parts[first]).contiguous()
    with pytest.raises(ValueError, match="expected factors that fit"):
        measure(kohya(tmp_path / "x.safetensors", parts))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bfloat16])
def test_an_alpha_of_any_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    A, B = randn(3, 20), randn(24, 3)
    parts = {"lora_up.weight": B, "lora_down.weight": A, "alpha": torch.tensor(6, dtype=dtype)}
    check(measure(kohya(tmp_path / "x.safetensors", parts)), LAYER, 2 * B @ A)


@pytest.mark.parametrize("stem", ["to_q_lora", "to_q.lora", "to_q.lora_linear_layer"])
def test_an_alpha_beside_diffusers_older_names(tmp_path: Path, stem: str) -> None:
    A, B = randn(3, 20), randn(24, 3)
    parts = {"up.weight": B, "down.weight": A, "alpha": torch.tensor(6.0)}
    save_file({f"unet.attn1.{stem}.{k}": v for k, v in parts.items()}, tmp_path / "x.safetensors")
    table = measure(tmp_path / "x.safetensors")
    check(table, "unet.attn1.to_q", 2 * B @ A)
    assert notes(table) == {None}


def check_all(
    place: Path, tensors: dict[str, Tensor], base: dict[str, Tensor], updates: dict[str, Tensor]
) -> None:
    """The rows of a file of factors over the file of its base, each against its dW."""
    save_file(tensors, place / "x.safetensors")
    save_file(base, place / "base.safetensors")
    table = measure(place / "x.safetensors", base=place / "base.safetensors")
    for layer, dW in updates.items():
        check(table, layer, dW, base[f"{layer}.weight"])


def test_xlabs_streams_of_flux(tmp_path: Path) -> None:
    """double_blocks.N.processor.qkv_lora2 belongs to txt_attn.qkv."""
    tensors, base, updates = {}, {}, {}
    for stream, name in (("1", "img"), ("2", "txt")):
        A, B, W = randn(3, 20), randn(60, 3), randn(60, 20)
        flat = f"double_blocks.0.processor.qkv_lora{stream}"
        tensors |= {f"{flat}.up.weight": B, f"{flat}.down.weight": A}
        own = f"double_blocks.0.{name}_attn.qkv"
        base[f"{own}.weight"], updates[own] = W, B @ A
    check_all(tmp_path, tensors, base, updates)


def test_the_text_encoders_of_sd3s_single_file(tmp_path: Path) -> None:
    """Two of them have equal names of layers."""
    tensors, base, updates = {}, {}, {}
    for te, name, layer in (
        ("te1", "clip_l", "text_model.encoder.layers.0.q"),
        ("te2", "clip_g", "text_model.encoder.layers.0.q"),
        ("te3", "t5xxl", "encoder.block.0.layer.0.SelfAttention.q"),
    ):
        A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
        flat = f"lora_{te}_{layer.replace('.', '_')}"
        tensors |= {f"{flat}.lora_up.weight": B, f"{flat}.lora_down.weight": A}
        own = f"text_encoders.{name}.transformer.{layer}"
        base[f"{own}.weight"], updates[own] = W, B @ A
    check_all(tmp_path, tensors, base, updates)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("unet:{}:down", "unet:{}:up"),  # of the first LoRA for Stable Diffusion
        ("linear1.lora_down.{}.weight", "linear1.lora_up.{}.weight"),
        ("lora_A.layers.{}", "lora_B.layers.{}"),
    ],
)
def test_pairs_whose_names_differ_in_one_word(tmp_path: Path, down: str, up: str) -> None:
    tensors = {down.format(i): randn(3, 20) for i in range(4)}
    tensors |= {up.format(i): randn(24, 3) for i in range(4)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="found pairs that look like factors"):
        measure(tmp_path / "x.safetensors")


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_a_base_that_was_saved_with_the_adapter_in_it(tmp_path: Path, prefix: str) -> None:
    A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
    layer = "model.layers.0.q_proj"
    names = {f"base_model.model.{layer}.lora_A.weight": A,
             f"base_model.model.{layer}.lora_B.weight": B}  # fmt: skip
    adapter = folder(tmp_path / "adapter", PEFT, "adapter_model.safetensors", names)
    state = {f"{prefix}{layer}.base_layer.weight": W, f"{prefix}{layer}.lora_A.default.weight": A}
    save_file(state, tmp_path / "base.safetensors")
    check(measure(adapter, base=tmp_path / "base.safetensors"), layer, 2 * B @ A, W)


def test_minloras_names(tmp_path: Path) -> None:
    A, B, W = randn(3, 20), randn(24, 3), randn(24, 20)
    inside = "h.0.q.parametrizations.weight.0"
    torch.save({f"{inside}.lora_A": A, f"{inside}.lora_B": B}, tmp_path / "x.pt")
    save_file({"h.0.q.weight": W}, tmp_path / "base.safetensors")
    table = measure(tmp_path / "x.pt", base=tmp_path / "base.safetensors", alpha=6)
    check(table, "h.0.q", 2 * B @ A, W)
