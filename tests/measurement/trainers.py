"""One of two gloo processes that train under the Trainer; test_trainers.py starts both.

python trainers.py PORT RANK FOLDER

Accelerate offers FSDP on accelerators only. ``allow_fsdp_on_cpu`` lets it have FSDP here; all that
comes after (wrapping, sharding, gathering, optimiser, callbacks) is the Trainer's own.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

import rankscope as rs
from tiny import roberta, stable_rank

DATA = [{"input_ids": torch.arange(6) + i, "labels": torch.tensor(i % 2)} for i in range(32)]
CASES = [(way, kind) for way in ("ddp", "fsdp1", "fsdp2") for kind in ("lora", "full")]


def allow_fsdp_on_cpu() -> None:
    prepared = AcceleratorState.__init__

    def prepare(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **rest: Any) -> None:
        prepared(self, *args, fsdp_plugin=fsdp_plugin, **rest)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            self.device = torch.device("cpu")  # not cpu:0, which FSDP1 takes for another device
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = prepare


def built(kind: str) -> nn.Module:
    torch.manual_seed(1)
    model = roberta()
    if kind == "full":
        return model
    config = peft.LoraConfig(target_modules=["query", "value"], r=4)
    return peft.get_peft_model(model, config)


def arguments(way: str, folder: Path) -> transformers.TrainingArguments:
    sharded: dict[str, Any] = {}
    if way != "ddp":
        settings = {
            "version": int(way[-1]), "transformer_layer_cls_to_wrap": ["RobertaLayer"],
            "use_orig_params": True, "sync_module_states": False, "activation_checkpointing": True,
        }  # fmt: skip
        sharded = {"fsdp": True, "fsdp_config": settings}
    return transformers.TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=4,
        ddp_backend="gloo", **sharded,
    )  # fmt: skip


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The parameters after training in float64, by their plain names."""
    found = {}
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        for name, one in model.named_parameters():
            tensor = one.full_tensor() if isinstance(one, DTensor) else one
            for wrapper in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module."):
                name = name.replace(wrapper, "")
            found[name.removeprefix("base_model.model.")] = tensor.detach().double().clone()
    return found


def oracle(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """What is to be logged of each query: float64 SVDs of the true W, dW and W + dW."""
    expected = {}
    for layer in (f"roberta.encoder.layer.{i}.attention.self.query" for i in range(2)):
        W = before[f"{layer}.weight"].double()
        if f"{layer}.weight" in after:
            dW = after[f"{layer}.weight"] - W
        else:
            B, A = (after[f"{layer}.lora_{part}.default.weight"] for part in "BA")
            dW = 2 * B @ A  # PEFT's alpha of 8, r = 4
        expected[f"stable_rank/dW/{layer}"] = stable_rank(dW)
        expected[f"stable_rank/W_plus_dW/{layer}"] = stable_rank(W + dW)
        norms = [float(torch.linalg.matrix_norm(one, 2)) for one in (dW, W)]
        expected[f"stable_rank/rho/{layer}"] = norms[0] / norms[1]
    return expected


def trained(way: str, kind: str, folder: Path) -> dict[str, Any]:
    model = built(kind)
    plain = model.state_dict() if kind == "full" else model.base_model.model.state_dict()
    before = {name.replace(".base_layer", ""): one.clone() for name, one in plain.items()}
    callback = rs.StableRankCallback(every=2, per_layer=True, layers="query", rtol=1e-6)
    trainer = transformers.Trainer(
        model=model, args=arguments(way, folder), train_dataset=DATA, callbacks=[callback]
    )
    trainer.train()
    sharded = trainer.model_wrapped
    losses = [log for log in trainer.state.log_history if "loss" in log]
    found = {
        "type": type(sharded).__name__,
        "logs": losses[-1],
        "expected": oracle(before, whole(sharded)),
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    return found


def main() -> None:
    port, rank, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    warnings.simplefilter("ignore")
    allow_fsdp_on_cpu()
    found = {}
    for way, kind in CASES:
        found[f"{way} {kind}"] = trained(way, kind, folder / rank)
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # without taking gloo and FSDP1 apart, in which torch sometimes aborts


if __name__ == "__main__":
    main()
