"""PEFT adapters: scales, patterns, orientation, and what is said of the parts that are no B A."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from families import FAMILIES
from rankscope.measurement.measure import measure
from rankscope.weights.lora_config import pattern_value
from tiny import Case, edited, shake, stable_rank


@pytest.mark.parametrize(
    "pattern",
    [
        {"query": 1, "attention.self.query": 2},
        {"attention.self.query": 2, "query": 1},
        {"uery": 3},
        {"elf.query": 3},
        {r"layer\.\d+\.attention\.self\.query": 4},
        {r"layer\.1\..*": 4, ".*": 5},
        {"roberta.encoder.layer.0.attention.self.query": 6},
        {"query|value": 7},
        {"": 8, "key": 9},
    ],
)
@pytest.mark.parametrize(
    "layer",
    [
        "roberta.encoder.layer.0.attention.self.query",
        "query",
        "roberta.layer.1.attention.self.value",
    ],
)
def test_patterns_match_as_in_peft(pattern: dict[str, int], layer: str) -> None:
    assert pattern_value(pattern, layer, 0) == pattern.get(
        get_pattern_key(pattern.keys(), layer), 0
    )


def test_the_scale_moves_sr_of_the_sum_only(make_case: Callable[..., Case], tmp_path: Path) -> None:
    case = make_case("roberta", target_modules=["query"], r=4, lora_alpha=8)
    plain = measure(case.adapter, base=case.base).rows
    rooted = measure(edited(case, tmp_path / "rooted", use_rslora=True), base=case.base).rows
    assert (plain[1].scale, rooted[1].scale) == (8 / 4, 8 / math.sqrt(4))
    assert plain[1].stable_rank == pytest.approx(rooted[1].stable_rank, rel=1e-12)
    assert plain[2].stable_rank != pytest.approx(rooted[2].stable_rank, rel=1e-2)


def test_square_conv1d_is_transposed_whatever_the_flag_says(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    """No shape check sees it and sr(dW) does not change: the hazard, then that the model's type
    decides."""
    case = make_case(
        "gpt2", target_modules=["attn.c_proj"], r=4, lora_alpha=32, fan_in_fan_out=True
    )
    wrong = edited(case, tmp_path / "wrong", fan_in_fan_out=False)
    layer = "transformer.h.0.attn.c_proj"
    W, dW = case.dense(layer, "W"), case.dense(layer, "dW")
    assert stable_rank(W + dW.mT) != pytest.approx(stable_rank(W + dW), rel=1e-3)
    for adapter in (case.adapter, wrong):
        rows = {
            (row.layer, row.matrix): row for row in measure(adapter, base=case.base, rtol=1e-7).rows
        }
        assert rows[layer, "W+dW"].stable_rank == pytest.approx(stable_rank(W + dW), rel=1e-6)


def test_a_base_saved_without_its_head_is_found_by_the_end_of_the_name(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = make_case("gpt2", target_modules=["c_attn"], r=4)
    shutil.copytree(case.base, tmp_path / "bare")
    tensors = load_file(tmp_path / "bare" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "bare" / "model.safetensors")
    assert (
        measure(case.adapter, base=tmp_path / "bare").rows
        == measure(case.adapter, base=case.base).rows
    )
    longer = {f"model.{name}": tensor for name, tensor in tensors.items()}
    save_file(longer, tmp_path / "bare" / "model.safetensors")
    assert (
        measure(case.adapter, base=tmp_path / "bare").rows
        == measure(case.adapter, base=case.base).rows
    )


def test_the_bin_file_reads_as_the_safetensors_file(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = make_case("roberta", target_modules=["query"], r=4)
    folder = edited(case, tmp_path / "bin")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert measure(folder).rows == measure(case.adapter).rows
    assert measure(folder / "adapter_model.bin").rows == measure(case.adapter).rows


def test_dora_without_its_base_is_skipped_with_the_directional_rank(
    make_case: Callable[..., Case],
) -> None:
    case = make_case("roberta", target_modules=["query"], r=4, use_dora=True)
    table = measure(case.adapter)
    assert table.rows == ()
    tensors = load_file(case.adapter / "adapter_model.safetensors")
    for skipped in table.skipped:
        B, A = (tensors[f"base_model.model.{skipped.layer}.lora_{x}.weight"] for x in "BA")
        assert f"has stable rank {stable_rank(B @ A):.4g}" in skipped.why
        assert "--base" in skipped.why
    assert len(table.skipped) == 2


def test_dora_is_of_full_rank_and_says_so(make_case: Callable[..., Case]) -> None:
    case = make_case("roberta", target_modules=["query"], r=2, use_dora=True)
    row = next(row for row in measure(case.adapter, base=case.base).rows if row.matrix == "dW")
    assert row.read_from == "magnitude"
    assert "of full rank" in row.note
    assert row.effective_rank > 2


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga"])
def test_initialisations_that_change_the_base_are_not_read_as_BA(
    make_case: Callable[..., Case], tmp_path: Path, start: str
) -> None:
    """Measured against the pretrained W where the base can be made again:
    tests/weights/test_oracle_matrix.py."""
    case = make_case("roberta", target_modules=["query"], r=4)
    table = measure(
        edited(
            case,
            tmp_path / "adapter",
            init_lora_weights=start,
            loftq_config={"loftq_bits": 4, "loftq_iter": 1},
        )
    )
    assert table.rows == ()
    assert len(table.skipped) == 2
    assert all("W' - W is not s B A" in skipped.why for skipped in table.skipped)
    based = measure(tmp_path / "adapter", base=case.base)
    if start in ("corda", "lora_ga", "loftq"):
        assert based.rows == ()
        assert all("no file tells what it is" in skipped.why for skipped in based.skipped)
    else:
        assert len(based.rows) == 6
        assert all("W' by PEFT's merge" in row.note for row in based.rows if row.matrix != "W")


def test_heads_and_biases_are_listed_or_measured_against_the_base(
    make_case: Callable[..., Case],
) -> None:
    case = make_case(
        "roberta", target_modules=["query"], r=4, modules_to_save=["classifier"], bias="all"
    )
    saved = load_file(case.adapter / "adapter_model.safetensors")
    alone, full = measure(case.adapter), measure(case.adapter, base=case.base)
    whys = {skipped.layer: skipped.why for skipped in alone.skipped}
    assert "a change of full rank outside B A" in whys["classifier.dense"]
    assert "a vector" in whys["roberta.encoder.layer.0.attention.self.value.bias"]
    dense = [row for row in full.rows if row.layer == "classifier.dense"]
    assert [(row.matrix, row.r, row.read_from) for row in dense] == [
        ("W", None, "weights"), ("dW", None, "difference"), ("W+dW", None, "weights")
    ]  # fmt: skip
    adapted = {row.layer for row in full.rows}
    for name in saved:
        plain = name.removeprefix("base_model.model.").removesuffix(".weight")
        plain = plain.replace(".modules_to_save.default", "")
        layer = plain.removesuffix(".lora_A").removesuffix(".lora_B")
        assert layer in adapted or any(skipped.layer == plain for skipped in full.skipped), name


def test_trained_tokens_are_listed(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "llama", target_modules=["q_proj"], r=2, trainable_token_indices={"embed_tokens": [1, 5]}
    )
    table = measure(case.adapter, base=case.base)
    assert {row.layer.split(".")[-1] for row in table.rows} == {"q_proj"}
    (skipped,) = table.skipped
    assert "embed_tokens" in skipped.layer
    assert "trained tokens: single rows of the embedding" in skipped.why


def test_an_embedding_that_grew_is_measured_against_the_adapters_own_copy(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    """PEFT saves the resized embedding beside its factors; the base still has the old one."""
    case = make_case("llama", target_modules=["embed_tokens"], r=3)
    folder = edited(case, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    name = "base_model.model.model.embed_tokens"
    generator = torch.Generator().manual_seed(0)
    W, A = torch.randn(54, 24, generator=generator), torch.randn(3, 54, generator=generator)
    tensors = load_file(file) | {f"{name}.base_layer.weight": W, f"{name}.lora_embedding_A": A}
    save_file(tensors, file)
    B = tensors[f"{name}.lora_embedding_B"].double()
    rows = {row.matrix: row for row in measure(folder, base=case.base, rtol=1e-7).rows}
    dW = rows["dW"].scale * (B @ A.double()).mT
    for matrix, dense in {"W": W.double(), "dW": dW, "W+dW": W + dW}.items():
        assert rows[matrix].stable_rank == pytest.approx(stable_rank(dense), rel=1e-6)
    assert "its shape changed from (50, 24) to (54, 24)" in rows["W+dW"].note


def test_a_head_of_another_size_is_listed(make_case: Callable[..., Case], tmp_path: Path) -> None:
    case = make_case("roberta", target_modules=["query"], r=4, modules_to_save=["classifier"])
    folder = edited(case, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.classifier.out_proj.weight"] = torch.ones(5, 24)
    save_file(tensors, folder / "adapter_model.safetensors")
    whys = {skipped.layer: skipped.why for skipped in measure(folder, base=case.base).skipped}
    assert "its shape changed from (2, 24) to (5, 24)" in whys["classifier.out_proj"]


def test_unknown_parts_are_not_measured_as_lora(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = make_case("roberta", target_modules=["query"], r=4)
    folder = edited(case, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    layer = "roberta.encoder.layer.0.attention.self.query"
    tensors[f"base_model.model.{layer}.lora_diag.weight"] = torch.ones(4)
    save_file(tensors, folder / "adapter_model.safetensors")
    table = measure(folder)
    assert [row.layer for row in table.rows] == ["roberta.encoder.layer.1.attention.self.query"]
    assert [(s.layer, s.why) for s in table.skipped] == [
        (layer, "lora_diag besides B and A: neither LoRA nor DoRA")
    ]


def test_a_zero_update_has_no_stable_rank_but_its_row_stays(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = make_case("roberta", target_modules=["query"], r=4)
    folder = edited(case, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n: t * ("lora_A" in n) for n, t in tensors.items()}, folder / "adapter_model.safetensors"
    )
    W, dW, effective = measure(folder, base=case.base).rows[:3]
    assert dW.stable_rank is None
    assert dW.lower is None
    assert dW.note
    assert (dW.spectral_norm, dW.frobenius_norm) == (0, 0)
    assert effective.stable_rank == pytest.approx(W.stable_rank)


def test_layers_in_their_own_order(make_case: Callable[..., Case], tmp_path: Path) -> None:
    case = make_case("roberta", target_modules=["query"], r=4)
    folder = edited(case, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n.replace("layer.1", "layer.10"): t.clone() for n, t in tensors.items()} | tensors,
        folder / "adapter_model.safetensors",
    )
    assert [row.layer.split(".")[3] for row in measure(folder).rows] == ["0", "1", "10"]


def test_an_overlapping_alpha_pattern_is_said(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "roberta", target_modules=["query"], r=4, alpha_pattern={"query": 3, "self.query": 9}
    )
    assert all(
        "alpha_pattern matches with 'query' and 'self.query'" in row.note
        for row in measure(case.adapter).rows
    )


def test_several_adapters_in_one_folder(make_case: Callable[..., Case], tmp_path: Path) -> None:
    case = make_case("roberta", target_modules=["query"], r=4)
    shutil.copytree(case.adapter, tmp_path / "runs" / "first")
    with pytest.raises(ValueError, match=r"Name one of its adapters: --subfolder first"):
        measure(tmp_path / "runs")


def test_a_real_adapter(real_adapters: Path) -> None:
    folder = real_adapters / "gpt-neo-125m-movies-r8"
    tensors = load_file(folder / "adapter_model.safetensors")
    table = measure(folder)
    assert len(table.rows) == 24
    assert table.skipped == ()
    for row in table.rows[::6]:
        B, A = (tensors[f"base_model.model.{row.layer}.lora_{x}.weight"].double() for x in "BA")
        assert (row.r, row.scale, row.shape) == (8, 2.0, (768, 768))
        assert row.stable_rank == pytest.approx(stable_rank(B @ A), rel=1e-9)
        assert row.frobenius_norm == pytest.approx(2 * float((B @ A).norm()), rel=1e-9)


def test_a_multimodal_base_whose_file_names_its_layers_otherwise(tmp_path: Path) -> None:
    """transformers turns "language_model.model." of Gemma 3's files into "model.language_model.";
    its vision tower has a q_proj of the same number."""
    base = FAMILIES["gemma3"].model()
    base.save_pretrained(tmp_path / "base")
    files = load_file(tmp_path / "base" / "model.safetensors")
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in files
    weights = {name: p.detach().clone() for name, p in base.named_parameters()}
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    table = measure(str(tmp_path / "adapter"), base=str(tmp_path / "base"))
    rows = {row.layer: row.stable_rank for row in table.rows if row.matrix == "W"}
    assert len(rows) == 6
    for layer, value in rows.items():
        assert value == pytest.approx(stable_rank(weights[f"{layer}.weight"].double()), rel=1e-5)
