"""Every LoRA variant, on tiny models: the numbers equal float64 SVD of what PEFT's own merge
makes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch

from rankscope.measurement.measure import measure
from rankscope.measurement.table import Table
from tiny import MODELS, Case, shake, stable_rank

QV = ["query", "value"]
VARIANTS = {
    "lora": ("roberta", {"target_modules": QV, "r": 4, "lora_alpha": 16}),
    "lora-all-linear": (
        "roberta",
        {"target_modules": [*QV, "key", "dense"], "r": 3, "lora_alpha": 8},
    ),
    "rslora": ("roberta", {"target_modules": QV, "r": 9, "lora_alpha": 2, "use_rslora": True}),
    "rank above dimension": ("roberta", {"target_modules": QV, "r": 32, "lora_alpha": 4}),
    "patterns": (
        "roberta",
        {
            "target_modules": [*QV, "dense"],
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {r"layer\.0\.attention\.self\.query": 2, "query": 6, "ense": 7},
            "alpha_pattern": {
                "value": 3,
                r".*\.1\.attention\.self\.value": 99,
                "attention.self.query": 20,
            },
        },
    ),
    "rslora patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "r": 4,
            "use_rslora": True,
            "rank_pattern": {"v_proj": 9},
            "alpha_pattern": {"down_proj": 5},
        },
    ),
    "dora": (
        "roberta",
        {"target_modules": [*QV, "intermediate.dense"], "r": 4, "lora_alpha": 16, "use_dora": True},
    ),
    "embedding": (
        "roberta",
        {"target_modules": ["word_embeddings", "query"], "r": 4, "lora_alpha": 16},
    ),
    "embedding dora": (
        "roberta",
        {"target_modules": ["word_embeddings"], "r": 4, "lora_alpha": 16, "use_dora": True},
    ),
    "conv1d": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 4, "fan_in_fan_out": True},
    ),
    "conv1d, flag corrected by peft": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "r": 4}),
    "conv1d and linear under one flag": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "lm_head"], "r": 4, "fan_in_fan_out": True},
    ),
    "conv1d dora": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "r": 4, "fan_in_fan_out": True, "use_dora": True},
    ),
    "gpt2 embedding": ("gpt2", {"target_modules": ["wte"], "r": 4}),
    "llama": ("llama", {"target_modules": "all-linear", "r": 4, "lora_alpha": 16}),
    "t5": ("t5", {"target_modules": ["q", "v", "wi", "wo"], "r": 4, "lora_alpha": 16}),
    "convolution": ("resnet", {"target_modules": ["convolution"], "r": 4, "lora_alpha": 16}),
    "heads and biases": (
        "roberta",
        {
            "target_modules": QV,
            "r": 4,
            "lora_alpha": 8,
            "modules_to_save": ["classifier"],
            "bias": "all",
        },
    ),
    "convolutions of one to three dimensions": (
        "convolutions",
        {"target_modules": ["one", "two", "three"], "r": 3, "lora_alpha": 16},
    ),
    "convolution dora": (
        "convolutions",
        {"target_modules": ["one", "two"], "r": 3, "use_dora": True},
    ),
    "experts, one by one in the checkpoint": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            "r": 4,
            "lora_alpha": 6,
            "rank_pattern": {"experts.down_proj": 2},
            "alpha_pattern": {r"layers\.1\.mlp\.experts\.gate_up_proj": 9},
        },
    ),
    "experts of one parameter": ("mixtral", {"target_parameters": ["experts.down_proj"], "r": 4}),
    "transposed experts": (
        "gpt-oss",
        {
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            "r": 4,
            "use_rslora": True,
        },
    ),
    "experts of three parameters, neither sorted nor told apart by shape": (
        "dbrx",
        {"target_modules": [], "target_parameters": ["mlp.w2", "mlp.v1", "mlp.w1"], "r": 2},
    ),
    "a parameter that is a matrix": (
        "llama",
        {"target_modules": [], "target_parameters": ["q_proj.weight"], "r": 4},
    ),
    "pissa": (
        "llama",
        {"target_modules": ["q_proj", "up_proj"], "r": 4, "init_lora_weights": "pissa"},
    ),
    "olora": (
        "llama",
        {"target_modules": ["q_proj", "up_proj"], "r": 4, "init_lora_weights": "olora"},
    ),
    "kasa": ("llama", {"target_modules": ["q_proj"], "r": 2, "kasa_config": peft.KasaConfig()}),
    "orthogonal": (
        "llama",
        {"target_modules": ["q_proj"], "r": 4, "init_lora_weights": "orthogonal"},
    ),
    "lora bias": ("roberta", {"target_modules": QV, "r": 4, "lora_bias": True}),
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def measured(request: pytest.FixtureRequest, make_case: Callable[..., Case]) -> tuple[Case, Table]:
    model, settings = VARIANTS[request.param]
    case = make_case(model, **settings)
    return case, measure(case.adapter, base=case.base, rtol=1e-7)


def test_stable_ranks_equal_those_of_peft_merge_minus_base(measured: tuple[Case, Table]) -> None:
    case, table = measured
    assert table.rows
    for row in table.rows:
        dense = case.dense(row.layer, row.matrix)
        assert row.shape == tuple(dense.shape)
        assert row.stable_rank == pytest.approx(stable_rank(dense), rel=1e-6), (
            row.layer,
            row.matrix,
        )
        assert row.lower <= row.stable_rank <= row.upper
        assert row.frobenius_norm == pytest.approx(float(dense.norm()), rel=1e-5)
        assert row.spectral_norm == pytest.approx(float(dense.double().svd().S[0]), rel=1e-5)


def test_every_changed_matrix_has_its_three_rows(measured: tuple[Case, Table]) -> None:
    case, table = measured
    assert case.changed()
    for layer in case.changed():
        assert [row.matrix for row in table.rows if row.layer == layer] == ["W", "dW", "W+dW"]


def test_without_the_base_dW_is_the_same_or_its_layer_is_named_as_skipped(
    measured: tuple[Case, Table],
) -> None:
    case, table = measured
    alone = measure(case.adapter)
    with_base = {row.layer: row for row in table.rows if row.matrix == "dW"}
    for row in alone.rows:
        assert row.matrix == "dW"
        assert row.read_from == "factors"
        assert row.stable_rank == pytest.approx(with_base[row.layer].stable_rank, rel=1e-12)
        assert (row.r, row.scale) == (with_base[row.layer].r, with_base[row.layer].scale)
    assert set(with_base) == {row.layer for row in alone.rows} | {
        s.layer for s in alone.skipped
    } & set(with_base)


class Pair(torch.nn.Module):
    """Two parameters whose order no file tells: z is declared before a."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.a = (torch.nn.Parameter(torch.randn(20, 12)) for _ in range(2))


def test_an_unknown_order_of_parameters_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(Pair())
    for targets, guessed in ((["0.z", "0.a"], True), (["0.a"], False)):
        config = peft.LoraConfig(target_modules=[], target_parameters=targets, r=2)
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        shake(adapted)
        adapted.save_pretrained(tmp_path / "adapter")
        rows = measure(tmp_path / "adapter").rows
        assert {row.layer for row in rows} == set(targets)
        said = "a guess which of a, z this is: no file tells their order"
        assert all((row.note is not None and said in row.note) == guessed for row in rows), rows


def test_a_tied_head_is_added_to_the_input_embeddings(make_case: Callable[..., Case]) -> None:
    """The checkpoint holds one of the two weights; PEFT's merge changes both."""
    case = make_case("tied-gpt2", target_modules=["lm_head"], r=4)
    rows = {row.matrix: row for row in measure(case.adapter, base=case.base, rtol=1e-7).rows}
    assert set(rows) == {"W", "dW", "W+dW"}
    for matrix, row in rows.items():
        assert row.layer == "lm_head"
        assert row.stable_rank == pytest.approx(
            stable_rank(case.dense("transformer.wte", matrix)), rel=1e-6
        )
    assert "W is transformer.wte.weight, which the layer is tied to" in rows["W+dW"].note


def test_torchs_own_attention(make_case: Callable[..., Case]) -> None:
    """q, k and v are one parameter; the output projection is nested inside, and PEFT 0.21 merges it
    twice."""
    case = make_case("attention", target_modules=["attn"], r=4, lora_alpha=6)
    rows = {
        (row.layer, row.matrix): row
        for row in measure(case.adapter, base=case.base, rtol=1e-7).rows
    }
    assert len(rows) == 6
    for layer, name, merges in (
        ("attn", "attn.in_proj_weight", 1),
        ("attn.out_proj", "attn.out_proj", 2),
    ):
        W, dW = case.dense(name, "W"), case.dense(name, "dW") / merges
        assert rows[layer, "dW"].frobenius_norm == pytest.approx(float(dW.norm()), rel=1e-6)
        for matrix, dense in {"W": W, "dW": dW, "W+dW": W + dW}.items():
            assert rows[layer, matrix].stable_rank == pytest.approx(stable_rank(dense), rel=1e-6)


def test_replicated_layers_share_one_W(tmp_path: Path) -> None:
    """PEFT can't merge them apart: the oracle is its own dW of each layer, added to the layer they
    came from."""
    torch.manual_seed(0)
    base = MODELS["llama"]()
    base.save_pretrained(tmp_path / "base")
    W = {name: p.detach().double().clone() for name, p in base.named_parameters()}
    config = peft.LoraConfig(
        target_modules=["q_proj"], r=4, layer_replication=[[0, 2], [0, 2], [1, 2]]
    )
    model = peft.get_peft_model(base, config)
    shake(model)
    model.save_pretrained(tmp_path / "adapter")
    table = measure(tmp_path / "adapter", base=tmp_path / "base", rtol=1e-7)
    assert len(table.rows) == 15
    for row in table.rows:
        dW = model.base_model.model.get_submodule(row.layer).double().get_delta_weight("default")
        number = int(row.layer.split(".")[2])
        old = W[f"model.layers.{(0, 1, 0, 1, 1)[number]}.self_attn.q_proj.weight"]
        dense = {"W": old, "dW": dW.detach(), "W+dW": old + dW.detach()}[row.matrix]
        assert row.stable_rank == pytest.approx(stable_rank(dense), rel=1e-6)
    notes = {row.layer: row.note for row in table.rows if row.matrix == "W+dW"}
    assert (
        "layers.0.self_attn.q_proj (layer_replication)" in notes["model.layers.2.self_attn.q_proj"]
    )
