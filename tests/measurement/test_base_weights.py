"""Live models whose base weights are packed, offloaded, or on no device."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import rankscope as rs
from measurement.sharded import logged
from rankscope.measurement.row import Row
from rankscope.weights.live_weight import base_weight
from rankscope.weights.matrix import Skipped
from tiny import roberta, shake, stable_rank


class Two(nn.Module):
    """Two layers that bitsandbytes can pack: their sizes are multiples of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(128, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def adapted(model: nn.Module, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(
            **{"target_modules": ["first"], "r": 4, "lora_alpha": 12, **settings}
        )
        found = peft.get_peft_model(model, config)
    shake(found)
    return found


def rows_of(model: nn.Module) -> dict[str, Row]:
    return {row.matrix: row for row in rs.probe(model, rtol=1e-6).rows}


def right(rows: dict[str, Row], W: Tensor, dW: Tensor) -> None:
    wanted = {"W": W.double(), "dW": dW.double(), "W+dW": W.double() + dW.double()}
    assert set(rows) == set(wanted)
    for matrix, dense in wanted.items():
        assert rows[matrix].stable_rank == pytest.approx(stable_rank(dense), rel=1e-5), matrix
        assert rows[matrix].frobenius_norm == pytest.approx(float(dense.norm()), rel=1e-5), matrix


def packed(kind: str) -> Any:
    """The first layer packed by bitsandbytes, as ``load_in_4bit`` and ``load_in_8bit`` leave it."""
    bnb: Any = pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes")
    model: Any = Two()
    weight = model.first.weight.data
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(128, 64, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(
            weight.clone(), requires_grad=False, has_fp16_weights=False
        )
    else:
        layer = bnb.nn.Linear4bit(128, 64, quant_type=kind, compute_dtype=torch.float32)
        layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type=kind)
    model.first = layer.to("cpu")
    return model


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("dora", [False, True])
def test_what_bitsandbytes_packed(kind: str, dora: bool) -> None:
    """W is what the layer computes with, seen from its outputs on unit vectors."""
    base = packed(kind)
    with torch.no_grad():
        W = (base.first(torch.eye(128)) - base.first(torch.zeros(1, 128))).T
    model = adapted(base, use_dora=dora)
    module = model.base_model.model.first
    A, B = module.lora_A.default.weight, module.lora_B.default.weight
    dW = 3 * (B @ A).detach()
    if dora:
        V = W + dW
        m = module.lora_magnitude_vector.default.weight.detach()
        dW = m[:, None] * V / V.norm(dim=1, keepdim=True) - W
    tolerance = 2e-2 if kind == "int8" else 1e-4  # int8 rounds its inputs, too
    rows = rows_of(model)
    assert set(rows) == {"W", "dW", "W+dW"}
    for matrix, dense in {"W": W, "dW": dW, "W+dW": W + dW}.items():
        assert rows[matrix].stable_rank == pytest.approx(stable_rank(dense), rel=tolerance), matrix
    assert "W is dequantised from bitsandbytes" in str(rows["dW"].note)


def test_a_packed_base_that_nothing_unpacks() -> None:
    model = adapted(Two())
    module = model.base_model.model.first
    dW = module.get_delta_weight("default").detach()
    module.base_layer.weight = nn.Parameter(torch.ones(5, 40, dtype=torch.int32), False)
    table = rs.probe(model, rtol=1e-6)
    assert [row.matrix for row in table.rows] == ["dW"]
    assert table.rows[0].stable_rank == pytest.approx(stable_rank(dW), rel=1e-5)
    assert [one.why for one in table.skipped] == [
        "W and W + dW: the base weight is int32, quantized: dequantise it first"
    ]
    del module.base_layer.weight  # GPTQ's layers have qweight instead
    table = rs.probe(model, rtol=1e-6)
    assert [row.matrix for row in table.rows] == ["dW"]
    assert "its base layer, Linear, has no weight" in table.skipped[0].why


def test_a_base_on_no_device_leaves_the_update() -> None:
    model = adapted(Two())
    module = model.base_model.model.first
    dW = module.get_delta_weight("default").detach()
    module.base_layer.to("meta")
    table = rs.probe(model, rtol=1e-6)
    assert [(row.matrix, row.layer) for row in table.rows] == [("dW", "first")]
    assert table.rows[0].stable_rank == pytest.approx(stable_rank(dW), rel=1e-5)
    assert "not in memory (device meta)" in table.skipped[0].why


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_accelerate_keeps_elsewhere_is_brought_back(tmp_path: Path, where: str) -> None:
    accelerate: Any = pytest.importorskip("accelerate")
    model = adapted(Two())
    module = model.base_model.model.first
    W, dW = module.base_layer.weight.detach().clone(), module.get_delta_weight("default").detach()
    if where == "memory":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in module.parameters())
    right(rows_of(model), W, dW)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_a_whole_model_on_no_device_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    model = roberta()
    reference = {name: one.clone() for name, one in model.state_dict().items()}
    model.to("meta")
    with pytest.raises(ValueError, match="not in memory"):
        rs.probe(model, reference)
    state = transformers.TrainerState(is_world_process_zero=True)
    control = transformers.TrainerControl()
    callback = rs.StableRankCallback(every=1)
    callback.on_init_end(None, state, control, model=model)
    callback.on_train_begin(None, state, control, model=model)
    assert logged(callback, model, 0) == {"loss": 1.0}
    assert "meta" in caplog.text


def test_a_method_that_only_merging_tells_is_not_merged_into_packed_weights() -> None:
    model = packed("nf4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = peft.get_peft_model(
                model, peft.VeraConfig(target_modules=["first"], r=4, projection_prng_key=0)
            )
        except (ValueError, TypeError) as error:
            pytest.skip(f"PEFT has no such layer: {error}")
    shake(model)
    with pytest.raises(ValueError, match="would round it: dequantise it first"):
        rs.probe(model)


class Int8Tensor(Tensor):
    """As torchao's: it is called float32, and hardly any operation knows it."""

    __module__ = "torchao.quantization"
    scale = 0.5

    def dequantize(self) -> Tensor:
        return self.scale * self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (torch.sum, Tensor.sum):
            raise NotImplementedError("aten.sum")
        return super().__torch_function__(function, types, args, kwargs or {})


class HQQLinear(nn.Linear):
    def dequantize(self) -> Tensor:
        return 2 * self.W_q


@pytest.mark.parametrize("kind", ["torchao", "HQQ"])
def test_torchaos_and_hqqs_weights(kind: str) -> None:
    """Both found by their names, as the libraries write them; tried with the libraries by hand."""
    layer = nn.Linear(5, 6) if kind == "torchao" else HQQLinear(5, 6)
    plain = layer.weight.detach().clone()
    if kind == "torchao":
        layer.weight = nn.Parameter(plain.as_subclass(Int8Tensor), requires_grad=False)
        wanted = plain / 2
    else:
        del layer.weight
        layer.weight, layer.W_q, wanted = None, plain, 2 * plain
    found, note = base_weight("l", layer, None)
    assert isinstance(found, Tensor)
    assert type(found) is Tensor
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert note is not None
    assert kind in note


@pytest.mark.parametrize("kind", ["torchao", "HQQ"])
def test_a_packed_weight_that_cannot_be_unpacked_is_left_out_with_its_reason(kind: str) -> None:
    layer = nn.Linear(5, 6) if kind == "torchao" else HQQLinear(5, 6)
    if kind == "torchao":
        packed = layer.weight.detach().as_subclass(Int8Tensor)
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.weight.scale = None  # type: ignore[assignment]
    else:
        layer.weight = None  # and no W_q
    found, _ = base_weight("l", layer, None)
    assert isinstance(found, Skipped)
    assert "can't be unpacked" in found.why
