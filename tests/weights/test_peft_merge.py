"""PEFT's other methods: W' - W equals float64 SVD of PEFT's merge; without the base they are
refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankscope.measurement.measure import measure
from rankscope.weights import peft_merge
from tiny import Case, edited, stable_rank

QU: dict[str, Any] = {"target_modules": ["q_proj", "up_proj"]}
METHODS: dict[str, tuple[str, type[peft.PeftConfig], dict[str, Any]]] = {
    "loha": ("llama", peft.LoHaConfig, {**QU, "r": 3, "alpha": 5}),
    "loha on convolutions": (
        "resnet",
        peft.LoHaConfig,
        {"target_modules": ["convolution"], "r": 3},
    ),
    "lokr": ("llama", peft.LoKrConfig, {**QU, "r": 3, "alpha": 5}),
    "adalora": ("llama", peft.AdaLoraConfig, {**QU, "init_r": 4, "total_step": 10}),
    "vera": ("llama", peft.VeraConfig, {**QU, "r": 4}),
    "vera, projection not saved": (
        "llama",
        peft.VeraConfig,
        {**QU, "r": 4, "save_projection": False},
    ),
    "oft": ("llama", peft.OFTConfig, {**QU, "oft_block_size": 4}),
    "boft": ("llama", peft.BOFTConfig, {**QU, "boft_block_size": 4}),
    "hra": ("llama", peft.HRAConfig, {**QU, "r": 4}),
    "miss": ("llama", peft.MissConfig, {**QU, "r": 4}),
    "ia3": ("llama", peft.IA3Config, {**QU, "feedforward_modules": ["up_proj"]}),
    "ia3 on conv1d": (
        "gpt2",
        peft.IA3Config,
        {
            "target_modules": ["c_attn", "mlp.c_proj"],
            "feedforward_modules": ["mlp.c_proj"],
            "fan_in_fan_out": True,
        },
    ),
    "ia3 on t5": (
        "t5",
        peft.IA3Config,
        {"target_modules": ["k", "v", "wi"], "feedforward_modules": ["wi"]},
    ),
    "fourierft": ("llama", peft.FourierFTConfig, {**QU, "n_frequency": 20}),
    "hira": ("llama", peft.HiraConfig, {**QU, "r": 4}),
    "randlora": ("llama", peft.RandLoraConfig, {**QU, "r": 4}),
    "vblora": ("llama", peft.VBLoRAConfig, {**QU, "r": 4, "num_vectors": 8, "vector_length": 8}),
    "shira": ("llama", peft.ShiraConfig, {**QU, "r": 4}),
    "c3a": ("llama", peft.C3AConfig, {**QU, "block_size": 8}),
    "delora": ("llama", peft.DeloraConfig, {**QU, "r": 4}),
    "gralora": ("llama", peft.GraloraConfig, {**QU, "r": 4, "gralora_k": 2}),
    "road": ("llama", peft.RoadConfig, {**QU, "group_size": 8}),
    "frod": ("llama", peft.FrodConfig, {**QU}),
    "pvera": ("llama", peft.PveraConfig, {**QU, "r": 4}),
    "glora": ("llama", peft.GloraConfig, {**QU, "r": 4}),
    "osf": ("llama", peft.OSFConfig, {**QU}),
    "psoft": ("llama", peft.PsoftConfig, {**QU, "r": 4}),
    "peanut": ("llama", peft.PeanutConfig, {**QU, "r": 4}),
    "supertuning": ("llama", peft.SupertuningConfig, {**QU}),
    "deft": ("llama", peft.DeftConfig, {**QU}),
    "tokens": ("llama", peft.TrainableTokensConfig, {"token_indices": [1, 3]}),
    "waveft": ("llama", peft.WaveFTConfig, {**QU, "n_frequency": 20}),
}


@pytest.mark.parametrize("method", list(METHODS))
def test_the_true_difference_equals_peft_merge_minus_base(
    method: str, make_case: Callable[..., Case]
) -> None:
    model, config, settings = METHODS[method]
    case = make_case(model, config, **settings)
    table = measure(case.adapter, base=case.base, rtol=1e-7)
    assert case.changed()
    for layer in case.changed():
        assert [row.matrix for row in table.rows if row.layer == layer] == ["W", "dW", "W+dW"], (
            table.skipped
        )
    for row in table.rows:
        dense = case.dense(row.layer, row.matrix)
        assert row.stable_rank == pytest.approx(stable_rank(dense), rel=1e-6), (
            row.layer,
            row.matrix,
        )
        assert row.frobenius_norm == pytest.approx(float(dense.norm()), rel=1e-5)
    with pytest.raises(
        ValueError,
        match=r"not a low-rank update: expected peft_type LORA, found [A-Z0-9_]+\. With its base",
    ):
        measure(case.adapter)


@pytest.mark.parametrize(
    ("peft_type", "why"),
    [
        ("PREFIX_TUNING", "it trains prompts and changes no weight"),
        ("XLORA", "it mixes adapters for each input"),
        ("LILY", "depends on the input"),
        ("LN_TUNING", "norms or biases"),
        ("TINYLORA", "which no file tells; merge it"),
        ("NONSENSE", "not a method of PEFT"),
        (None, "not a method of PEFT"),
        (["LORA"], "not a method of PEFT"),
    ],
)
def test_what_has_no_difference_is_refused_even_with_its_base(
    peft_type: object, why: str, make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = make_case("llama", peft.LoHaConfig, **QU, r=2)
    with pytest.raises(
        ValueError, match="not a low-rank update: expected peft_type LORA, found"
    ) as caught:
        measure(edited(case, tmp_path / "adapter", peft_type=peft_type), base=case.base)
    assert why in str(caught.value)


def test_nothing_that_a_configuration_names_is_imported_or_opened(
    make_case: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT imports ``megatron_core`` by name where ``megatron_config`` is set."""
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    case = make_case("llama", **QU, r=2, init_lora_weights="olora")
    hostile = edited(case, tmp_path / "a", megatron_config={"x": 1}, megatron_core="payload",
                                                            task_type="SEQ_CLS",
                     auto_mapping={"base_model_class": "payload",
                                   "parent_library": "payload"})  # fmt: skip
    assert measure(hostile, base=case.base).rows == measure(case.adapter, base=case.base).rows
    assert not (tmp_path / "mark").exists()


def test_an_adapter_of_another_model_or_with_a_part_missing(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case, other = (
        make_case("llama", peft.LoHaConfig, **QU, r=2),
        make_case("t5", target_modules=["q"], r=2),
    )
    with pytest.raises(ValueError, match="another model"):
        measure(case.adapter, base=other.base)
    folder = edited(case, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    lost = next(name for name in tensors if "hada_w2_a" in name)
    save_file({n: t for n, t in tensors.items() if n != lost}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"expected {re.escape(lost)}; found none"):
        measure(folder, base=case.base)
    save_file(tensors | {lost: torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"it says: .*size mismatch"):
        measure(folder, base=case.base)


def test_the_heads_of_other_methods_are_measured_too(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "roberta",
        peft.LoHaConfig,
        target_modules=["key"],
        r=2,
        modules_to_save=["out_proj"],
    )
    table = measure(case.adapter, base=case.base)
    assert {row.layer for row in table.rows if row.read_from == "difference"} == {
        "classifier.out_proj"
    }
    assert {s.layer for s in table.skipped} == {"classifier.out_proj.bias"}


def test_merging_reads_no_global_random_state(make_case: Callable[..., Case]) -> None:
    case = make_case("llama", peft.VeraConfig, **QU, r=4)
    state = torch.get_rng_state()
    measure(case.adapter, base=case.base)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_method_of_peft_is_known() -> None:
    """Listed, so that none has to be imported to refuse an adapter: a new PEFT shows here."""
    from peft import PeftType

    known = {"LORA", *peft_merge.METHODS, *peft_merge.NO_DIFFERENCE}
    assert known == set(PeftType.__members__)
    assert not peft_merge.METHODS & peft_merge.NO_DIFFERENCE.keys()
