"""Stable rank while training: the callback in a real Trainer, and ``probe`` in any loop."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from rankscope.measurement.callback import StableRankCallback
from rankscope.measurement.measure import measure
from rankscope.measurement.probe import probe
from rankscope.measurement.row import Row
from tiny import MODELS, roberta, shake, stable_rank

DATA = [{"input_ids": torch.arange(6) + i, "labels": torch.tensor(i % 2)} for i in range(16)]


def adapted(
    model: nn.Module, method: type[peft.PeftConfig] = peft.LoraConfig, **settings: Any
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(
            model, method(**{"target_modules": ["query", "value"], "r": 4, **settings})
        )


class Reporter(transformers.TrainerCallback):
    """Stands where the Trainer's own reporters stand: before the user's callbacks."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.append({**logs, "step": state.global_step})


def train(
    model: nn.Module, callback: StableRankCallback, folder: Path, **settings: Any
) -> tuple[list[Any], list[Any]]:
    """8 steps. -> what the reporter saw, the Trainer's log history"""
    torch.manual_seed(0)
    reporter = Reporter()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=8, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no", **{"logging_steps": 4, **settings},
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=DATA, callbacks=[reporter]
    )
    callback.attach(trainer)
    trainer.train()
    return reporter.seen, trainer.state.log_history


def of_step(logs: list[dict[str, float]], step: int) -> dict[str, float]:
    return next(log for log in logs if log["step"] == step and "loss" in log)


@pytest.fixture
def build() -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(1)
        return roberta()

    return make


def test_lora_is_logged_beside_the_loss_and_reaches_the_reporters(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = adapted(build())
    seen, history = train(model, StableRankCallback(every=2), tmp_path)
    for logs in (seen, history):
        for step in (2, 4, 6, 8):
            log = of_step(logs, step)
            assert 1 <= log["stable_rank/dW"] <= 4
            assert log["stable_rank/W_plus_dW"] > 4
            assert log["frobenius_norm/dW"] >= log["spectral_norm/dW"] > 0
            assert "loss" in log
            assert "stable_rank/drift" in log
    assert len([log for log in history if "stable_rank/dW" in log]) == 4


def test_the_last_log_holds_what_the_final_model_has(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = adapted(build())
    seen, _ = train(model, StableRankCallback(every=8, rtol=1e-6), tmp_path)
    rows = {(row.layer, row.matrix): row for row in probe(model, rtol=1e-6).rows}
    layers = {layer for layer, _ in rows}
    median = sorted(rows[layer, "dW"].stable_rank for layer in layers)
    assert of_step(seen, 8)["stable_rank/dW"] == pytest.approx(
        (median[1] + median[2]) / 2, rel=1e-5
    )
    logs = sorted(
        math.log(rows[layer, "W+dW"].stable_rank / rows[layer, "W"].stable_rank) for layer in layers
    )
    assert of_step(seen, 8)["stable_rank/drift"] == pytest.approx(
        math.expm1((logs[1] + logs[2]) / 2), rel=1e-4
    )


def test_steps_without_a_measurement_log_as_always(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    _, history = train(adapted(build()), StableRankCallback(every=3), tmp_path)
    assert [log["step"] for log in history if "loss" in log] == [3, 4, 6, 8]
    assert [log["step"] for log in history if "stable_rank/dW" in log] == [3, 6]


def test_training_itself_is_not_touched(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    plain, watched = build(), build()
    train(plain, StableRankCallback(every=1000), tmp_path / "plain")
    train(watched, StableRankCallback(every=1), tmp_path / "watched")
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_per_layer_values(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    callback = StableRankCallback(every=8, per_layer=True, layers="query")
    log = of_step(train(adapted(build()), callback, tmp_path)[0], 8)
    assert {name for name in log if name.startswith("stable_rank/dW/")} == {
        f"stable_rank/dW/roberta.encoder.layer.{i}.attention.self.query" for i in range(2)
    }


def test_full_fine_tuning(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    callback = StableRankCallback(every=8, layers="query", per_layer=True, rtol=1e-6)
    log = of_step(train(model, callback, tmp_path)[0], 8)
    for name, parameter in model.named_parameters():
        if "query.weight" in name:
            layer = name.removesuffix(".weight")
            dense = parameter.detach().double()
            assert log[f"stable_rank/W_plus_dW/{layer}"] == pytest.approx(
                stable_rank(dense), rel=1e-5
            )
            assert log[f"stable_rank/dW/{layer}"] == pytest.approx(
                stable_rank(dense - before[name].double()), rel=1e-5
            )


def test_other_methods_are_logged_too(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = adapted(build(), peft.LoHaConfig)
    log = of_step(train(model, StableRankCallback(every=8, rtol=1e-6), tmp_path)[0], 8)
    rows = [row.stable_rank for row in probe(model, rtol=1e-6).rows if row.matrix == "dW"]
    assert len(rows) == 4
    assert log["stable_rank/dW"] == pytest.approx(sum(sorted(rows)[1:3]) / 2, rel=1e-4)
    assert "stable_rank/drift" in log


def test_every_must_be_a_step() -> None:
    with pytest.raises(ValueError, match="expected every >= 1"):
        StableRankCallback(every=0)


VARIANTS = {
    "lora": ("roberta", {}),
    "rslora": ("roberta", {"use_rslora": True, "lora_alpha": 3}),
    "dora": ("roberta", {"use_dora": True}),
    "embedding": ("roberta", {"target_modules": ["word_embeddings"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "convolution": ("resnet", {"target_modules": ["convolution"]}),
    "experts": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
    "transposed experts": (
        "gpt-oss",
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "a parameter": ("llama", {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "loha": ("roberta", {"method": peft.LoHaConfig}),
    "adalora": ("roberta", {"method": peft.AdaLoraConfig, "init_r": 4, "total_step": 10}),
    "vera": ("roberta", {"method": peft.VeraConfig}),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_probe_equals_measuring_the_saved_adapter(variant: str, tmp_path: Path) -> None:
    name, settings = VARIANTS[variant]
    torch.manual_seed(0)
    base = MODELS[name]()
    base.save_pretrained(tmp_path / "base")
    model = adapted(base, **settings)
    shake(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "adapter")

    def key(row: Row) -> tuple[str, str]:
        return row.layer, row.matrix

    live, stored = probe(model), measure(tmp_path / "adapter", base=tmp_path / "base")
    assert live.rows
    for a, b in zip(sorted(live.rows, key=key), sorted(stored.rows, key=key), strict=True):
        assert (*key(a), a.shape, a.r, a.scale) == (*key(b), b.shape, b.r, b.scale)
        assert a.stable_rank == pytest.approx(b.stable_rank, rel=1e-6)
        assert a.frobenius_norm == pytest.approx(b.frobenius_norm, rel=1e-6)


def test_two_active_adapters_are_summed(build: Callable[[], nn.Module]) -> None:
    model = adapted(build())
    model.add_adapter("second", peft.LoraConfig(target_modules=["query"], r=3, lora_alpha=5))
    shake(model)
    for name, parameter in model.named_parameters():
        if "second" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(3))
    model.base_model.set_adapter(["default", "second"])
    before = {
        n.removeprefix("base_model.model."): p.clone()
        for n, p in model.named_parameters()
        if "base_layer" in n
    }
    rows = {row.layer: row for row in probe(model, rtol=1e-6).rows if row.matrix == "dW"}
    merged = dict(model.merge_and_unload().named_parameters())
    for layer, row in rows.items():
        dW = merged[f"{layer}.weight"].double() - before[f"{layer}.base_layer.weight"].double()
        assert row.stable_rank == pytest.approx(stable_rank(dW), rel=1e-4)
        assert row.frobenius_norm == pytest.approx(float(dW.norm()), rel=1e-4)
        assert row.r == (7 if "query" in layer else 4)


def test_probe_of_a_plain_model_needs_its_reference(build: Callable[[], nn.Module]) -> None:
    model = build()
    with pytest.raises(ValueError, match=r"reference = \{k: v.clone\(\)"):
        probe(model)
    reference: dict[str, Tensor] = copy.deepcopy(model.state_dict())
    shake(model)
    table = probe(model, reference, rtol=1e-6)
    for row in table.rows:
        name = f"{row.layer}.weight"
        dW = model.state_dict()[name].double() - reference[name].double()
        dense = {"W": reference[name], "dW": dW, "W+dW": model.state_dict()[name]}[row.matrix]
        assert row.stable_rank == pytest.approx(stable_rank(dense), rel=1e-5)


def test_probe_names_what_else_is_trained_and_what_is_merged(
    build: Callable[[], nn.Module],
) -> None:
    model = adapted(build(), modules_to_save=["classifier"])
    skipped = {s.layer: s.why for s in probe(model).skipped}
    assert any("classifier" in layer for layer in skipped)
    assert all("outside B A" in why for why in skipped.values())
    rows = probe(model).rows
    assert [row.stable_rank is None for row in rows[:3]] == [False, True, False]  # B = 0 at step 0
    model.merge_adapter()
    with pytest.raises(
        ValueError, match=r"nothing of .* can be measured; .*query: .*call unmerge\(\) first"
    ):
        probe(model)


def test_probe_reads_no_global_random_state(build: Callable[[], nn.Module]) -> None:
    model = adapted(build())
    state = torch.get_rng_state()
    probe(model)
    assert torch.equal(torch.get_rng_state(), state)
