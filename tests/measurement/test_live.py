"""Live models as trainers wrap, resume and partition them: right values, or one line and no
exception."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import rankscope as rs
from measurement.sharded import logged
from tiny import Attention, roberta, shake, stable_rank

DATA = [{"input_ids": torch.arange(6) + i, "labels": torch.tensor(i % 2)} for i in range(16)]
QUERY = "roberta.encoder.layer.0.attention.self.query"


def built() -> Any:
    torch.manual_seed(1)
    return roberta()


def adapted(model: nn.Module, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**{"target_modules": ["query", "value"], "r": 4, **settings})
        return peft.get_peft_model(model, config)


def trainer_of(
    model: nn.Module, folder: Path, steps: int, callbacks: list[Any]
) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_steps=4, logging_steps=4,
    )  # fmt: skip
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=DATA, callbacks=callbacks
    )


def last_dW(trainer: transformers.Trainer) -> float | None:
    key = f"stable_rank/dW/{QUERY}"
    return next((log[key] for log in reversed(trainer.state.log_history) if key in log), None)


def test_a_resumed_training_is_measured_from_the_pretrained_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    W = built().state_dict()[f"{QUERY}.weight"].double()
    trainer_of(built(), tmp_path, 4, []).train()
    callback = rs.StableRankCallback(every=4, per_layer=True, layers="query", rtol=1e-6)
    given = trainer_of(built(), tmp_path, 8, [callback])
    given.train(resume_from_checkpoint=True)
    true = stable_rank(given.model.state_dict()[f"{QUERY}.weight"].double() - W)
    assert last_dW(given) == pytest.approx(true, rel=1e-5)
    assert "not known" not in caplog.text
    late = trainer_of(built(), tmp_path, 8, [])
    late.add_callback(rs.StableRankCallback(every=4, per_layer=True, layers="query"))
    late.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert last_dW(late) is None
    assert "the pretrained weights are not known" in caplog.text


def test_multihead_attention_has_both_of_its_projections() -> None:
    torch.manual_seed(0)
    model = adapted(Attention(), target_modules=["attn"], lora_alpha=8, init_lora_weights=False)
    module = model.base_model.model.attn
    dW = module.get_delta_weight("default").detach().double()
    rows = {(row.layer, row.matrix): row for row in rs.probe(model, rtol=1e-6).rows}
    assert {layer for layer, _ in rows} == {"attn", "attn.out_proj"}
    W = module.in_proj_weight.detach().double()
    assert rows["attn", "dW"].stable_rank == pytest.approx(stable_rank(dW), rel=1e-5)
    assert rows["attn", "W+dW"].stable_rank == pytest.approx(stable_rank(W + dW), rel=1e-5)


def test_wrappers_do_not_show_in_names() -> None:
    model = adapted(built(), init_lora_weights=False)
    expected = rs.probe(model).rows
    layer = model.base_model.model.roberta.encoder.layer
    layer[0] = checkpoint_wrapper(layer[0])
    for wrapped in (
        model,
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        torch.compile(nn.DataParallel(model), backend="eager"),
    ):
        assert rs.probe(wrapped).rows == expected


def test_disabled_adapters_are_not_measured() -> None:
    model = adapted(built(), init_lora_weights=False)
    with model.disable_adapter(), pytest.raises(ValueError, match="its adapters are disabled"):
        rs.probe(model)
    assert rs.probe(model).rows


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_partitioned_parameters_are_said_in_one_line(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As DeepSpeed ZeRO-3 leaves them between steps."""
    model = built() if kind == "full" else adapted(built(), init_lora_weights=False)
    reference = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    state, control = (
        transformers.TrainerState(is_world_process_zero=True),
        transformers.TrainerControl(),
    )
    callback = rs.StableRankCallback(every=1)
    callback.on_train_begin(None, state, control, model=model)
    assert logged(callback, model, 0) == {"loss": 1.0}
    assert caplog.text.count("partitioned by DeepSpeed ZeRO-3") == 1
    with pytest.raises(ValueError, match="partitioned by DeepSpeed ZeRO-3"):
        rs.probe(model, reference if kind == "full" else None)


def test_a_reference_from_files_is_one_from_memory(tmp_path: Path) -> None:
    model = built()
    model.save_pretrained(tmp_path)
    reference = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shake(model)
    assert rs.probe(model, tmp_path).rows == rs.probe(model, reference).rows


class Gathered:
    """What ``deepspeed.zero.GatheredParameters`` does to partitioned parameters: within it they
    hold their values, afterwards nothing."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.data = parameter.kept

    def __exit__(self, *_: object) -> None:
        for parameter in self.parameters:
            parameter.data = torch.empty(0)


@pytest.mark.parametrize("full", [False, True])
def test_parameters_partitioned_by_zero_3_are_gathered(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model: nn.Module = roberta()
    reference = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if full:
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    else:
        config = peft.LoraConfig(target_modules=["query"], r=4, init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(model, config)
    wanted = rs.probe(model, reference if full else None)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.kept = parameter.data
        parameter.data = torch.empty(0)
    zero = types.SimpleNamespace(GatheredParameters=Gathered)
    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(zero=zero))
    found = rs.probe(model, reference if full else None)
    assert len(found.rows) == len(wanted.rows) > 5
    for one, other in zip(found.rows, wanted.rows, strict=True):
        assert (one.layer, one.matrix, one.shape) == (other.layer, other.matrix, other.shape)
        assert one.stable_rank == pytest.approx(other.stable_rank, rel=1e-3)
        assert one.frobenius_norm == pytest.approx(other.frobenius_norm, rel=1e-12)
    assert all(parameter.numel() == 0 for parameter in model.parameters())  # given back
