"""Output folders as LLaMA-Factory, axolotl and Unsloth leave them: one run of TRL, laid out by hand
as each of these lays out its own. Nothing that would be unpickled is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import save_model, sizes
from rankscope.cli import main
from rankscope.store.store import Store
from trainers import sft_run

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainer
pytest.importorskip("trl")
RATE, STEPS = 1e-2, {3, 6}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    def make() -> Any:
        config = LlamaConfig(
            **sizes(16), num_key_value_heads=1, max_position_embeddings=40, bos_token_id=0,
            eos_token_id=2,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return save_model(tmp_path_factory.mktemp("base") / "llama", make)


@pytest.fixture(scope="module")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with its evaluations at 3 and 6."""
    out = tmp_path_factory.mktemp("trl") / "out"
    trainer = sft_run(base, out, rate=RATE)
    trainer.save_model()
    trainer.save_state()
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy without Trainer's own files of arguments, and without TRL's card."""
    folder = tmp_path / "outputs" / "run"
    shutil.copytree(trained, folder)
    for name in ("training_args.bin", "README.md"):
        for path in folder.rglob(name):
            path.unlink()
    return folder


def llama_factory(run: Path, *, with_state: bool) -> None:
    """training_args.yaml, trainer_log.jsonl and results; its log counts ``current_steps``."""
    arguments = (
        "bf16: false\ncutoff_len: 16\ndataset: alpaca_en_demo\nfinetuning_type: lora\n"
        "gradient_accumulation_steps: 8\nlearning_rate: 1.0e-2\nlora_rank: 2\nlora_target: all\n"
        "lr_scheduler_type: cosine\nmax_grad_norm: 1.0\nnum_train_epochs: 3.0\noptim: adamw_torch\n"
        "per_device_train_batch_size: 2\nseed: 7\nstage: sft\nwarmup_steps: 0\n"
    )
    (run / "training_args.yaml").write_text(arguments)
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    lines = []
    for entry in log:
        kept = {k: v for k, v in entry.items() if k in ("loss", "eval_loss", "epoch")}
        if kept.keys() & {"loss", "eval_loss"}:
            lines.append({"current_steps": entry["step"], "total_steps": 6, **kept,
                          "percentage": 50.0, "elapsed_time": "0:00:01"})  # fmt: skip
    (run / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {"epoch": 3.0, "train_loss": 1.0, "train_runtime": 1.0, "eval_loss": 99.0}
    for name in ("all_results.json", "train_results.json", "eval_results.json"):
        (run / name).write_text(json.dumps(results))
    if not with_state:
        for path in run.rglob("trainer_state.json"):
            path.unlink()


CONFIG = """base_model: {base}
load_in_8bit: false
adapter: lora
lora_r: 2
sequence_len: 16
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 1e-2
weight_decay: 0.25
seed: 7
"""
CARD = """---
library_name: peft
tags:
- axolotl
- generated_from_trainer
---
<details><summary>See axolotl config</summary>

axolotl version: `0.9.2`
```yaml
{config}
```

</details><br>

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 0.01
- train_batch_size: 2
- eval_batch_size: 2
- seed: 7
- distributed_type: multi-GPU
- num_devices: 2
- gradient_accumulation_steps: 4
- total_train_batch_size: 16
- optimizer: Use adamw_bnb_8bit with betas=(0.9,0.999) and epsilon=1e-08
- lr_scheduler_type: cosine
- num_epochs: 3
"""


def unsloth(run: Path) -> None:
    """An adapter_config.json that names Unsloth's own copy of the base, and layers by a regular
    expression."""
    for path in run.rglob("adapter_config.json"):
        content = json.loads(path.read_text())
        content["base_model_name_or_path"] = "unsloth/llama-3-8b-bnb-4bit"
        content["auto_mapping"] = {
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        }
        content["target_modules"] = (
            r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|"
            r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))"
        )
        path.write_text(json.dumps(content))
    (run / "README.md").write_text("---\nbase_model: unsloth/llama-3-8b-bnb-4bit\n---\n# Model\n")


def collected(run: Path, base: str, *more: str, status: int = 0) -> Store:
    place = run.parent.parent / "store"
    typed = ["collect", str(run.parent), "--store", str(place), "--base", base, "--task", "chat"]
    assert main([*typed, *more]) == status
    return Store(place)


def one(store: Store) -> Any:
    (trial,) = store.trials().to_dict("records")
    assert set(store.metrics()["step"]) == STEPS
    assert set(store.spectra()["step"]) == STEPS | {0}  # 0: the base
    assert {name.rpartition(".")[2] for name in store.spectra()["layer"]} == {"q_proj", "v_proj"}
    assert set(store.spectra()["matrix"]) == {"W", "dW", "W+dW"}
    assert (trial["rank"], trial["learning_rate"]) == (2, RATE)
    return trial


@pytest.mark.parametrize("with_state", [True, False])
def test_llama_factory(with_state: bool, run: Path, base: str) -> None:
    """Also where only its own log is left: evaluations at their steps, none from all_results."""
    losses = {
        entry["step"]: entry["eval_loss"]
        for entry in json.loads((run / "trainer_state.json").read_text())["log_history"]
        if "eval_loss" in entry
    }
    llama_factory(run, with_state=with_state)
    store = collected(run, base)
    trial = one(store)
    assert trial["seed"] == 7
    assert store.planned()[0].batch_size == 16
    metrics = store.metrics()
    assert dict(zip(metrics["step"], metrics["eval_loss"], strict=True)) == losses


@pytest.mark.parametrize("form", ["card", "config.yml"])
def test_axolotl(form: str, run: Path, base: str) -> None:
    """By its model card, which knows the devices, or by its configuration copied beside."""
    config = CONFIG.format(base=base)
    if form == "card":
        (run / "README.md").write_text(CARD.format(config=config))
    else:
        (run / form).write_text(config)
    store = collected(run, base)
    assert one(store)["seed"] == 7
    (kept,) = store.planned()
    assert kept.batch_size == (16 if form == "card" else 8)
    assert (kept.weight_decay, kept.lr_scheduler_type, kept.max_length) == (0.25, "cosine", 16)


def test_unsloth(run: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but the map says the rate and the seed; the base is given, as its own is not here."""
    unsloth(run)
    collected(run, base, status=3)
    assert "learning_rate: expected in a file of the run" in capsys.readouterr().err
    table = run.parent / "map.csv"
    table.write_text("path,learning_rate,seed\nrun,1e-2,3407\n")
    trial = one(collected(run, base, "--map", str(table)))
    assert trial["seed"] == 3407


def test_a_saved_adapter_alone_has_no_step(
    run: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unsloth's lora_model/: no state, no checkpoint. A column step says which it is."""
    unsloth(run)
    for path in [*run.glob("checkpoint-*")]:
        shutil.rmtree(path)
    (run / "trainer_state.json").unlink()
    table = run.parent / "map.csv"
    table.write_text("path,learning_rate,seed\nrun,1e-2,3407\n")
    collected(run, base, "--map", str(table), status=3)
    assert "no file names their step" in capsys.readouterr().err
    table.write_text("path,learning_rate,seed,step\nrun,1e-2,3407,60\n")
    store = collected(run, base, "--map", str(table))
    assert set(store.spectra()["step"]) == {0, 60}
