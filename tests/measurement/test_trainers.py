"""The callback under trainers as people run them: the Trainer with FSDP and DDP on two processes,
and TRL's SFTTrainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import rankscope as rs
from measurement.trainers import CASES
from measurement.two_processes import run_both
from tiny import llama, stable_rank

TYPES = {"ddp": "DistributedDataParallel", "fsdp1": "FullyShardedDataParallel", "fsdp2": "FSDP"}


@pytest.mark.slow
def test_the_trainer_with_fsdp_and_ddp_on_two_processes(tmp_path: Path) -> None:
    first, second = run_both("trainers.py", tmp_path)
    assert list(first) == list(second) == [f"{way} {kind}" for way, kind in CASES]
    for name, found in first.items():
        assert found["type"].startswith(TYPES[name.split()[0]])
        assert len(found["expected"]) == 6
        for key, value in found["expected"].items():
            assert found["logs"][key] == pytest.approx(value, rel=1e-5), (name, key)
        assert not any("stable_rank" in key for key in second[name]["logs"])
        assert second[name]["logs"]["loss"] == found["logs"]["loss"]


WORDS = 47


def sft_trainer(folder: Path, callback: Any, **settings: Any) -> Any:
    trl = pytest.importorskip("trl", reason="trl is in the dev extra")
    datasets = pytest.importorskip("datasets")
    words = {f"w{i}": i for i in range(WORDS)} | {"<pad>": 47, "<eos>": 48, "<unk>": 49}
    split = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=split, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    texts = [" ".join(f"w{(i + j) % WORDS}" for j in range(8)) for i in range(16)]
    arguments = trl.SFTConfig(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=4,
        max_length=16,
    )  # fmt: skip
    torch.manual_seed(1)
    return trl.SFTTrainer(
        model=llama(), args=arguments, processing_class=tokenizer, callbacks=[callback],
        train_dataset=datasets.Dataset.from_dict({"text": texts}), **settings,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_trl_sft_trainer_checkpointing_its_activations(kind: str, tmp_path: Path) -> None:
    callback = rs.StableRankCallback(every=2, per_layer=True, layers="q_proj", rtol=1e-6)
    adapter = {"peft_config": peft.LoraConfig(target_modules=["q_proj"], r=4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own
        trainer = sft_trainer(tmp_path, callback, **(adapter if kind == "lora" else {}))
        before = {name: one.double().clone() for name, one in trainer.model.state_dict().items()}
        trainer.train()
    after = {name: one.double() for name, one in trainer.model.state_dict().items()}
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [2, 4]
    assert trainer.model.is_gradient_checkpointing
    for layer in (f"model.layers.{i}.self_attn.q_proj" for i in range(2)):
        if kind == "lora":
            name = f"base_model.model.{layer}"
            W = before[f"{name}.base_layer.weight"]
            B, A = (after[f"{name}.lora_{part}.default.weight"] for part in "BA")
            dW = 8 / 4 * B @ A
        else:
            W = before[f"{layer}.weight"]
            dW = after[f"{layer}.weight"] - W
        assert logs[-1][f"stable_rank/dW/{layer}"] == pytest.approx(stable_rank(dW), rel=1e-5)
        assert logs[-1][f"stable_rank/W_plus_dW/{layer}"] == pytest.approx(
            stable_rank(W + dW), rel=1e-5
        )
