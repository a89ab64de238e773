"""One of two gloo processes that measure a sharded model; test_sharded.py starts both and compares.

python sharded.py PORT RANK FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

import rankscope as rs
from rankscope.measurement import probe
from tiny import roberta

BATCH = {"input_ids": torch.arange(12).reshape(2, 6) + 4, "labels": torch.tensor([0, 1])}


def plain(kind: str) -> nn.Module:
    """The model before training."""
    torch.manual_seed(1)
    model = roberta().eval()
    if kind == "full":
        return model
    method = {"lora": peft.LoraConfig, "loha": peft.LoHaConfig}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, method(target_modules=["query", "value"], r=4))


def trained(model: nn.Module) -> None:
    """In place of training: noise on what is trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.05


def fsdp2(model: nn.Module) -> nn.Module:
    """Blocks, each LoRA factor as PEFT's policy has it, and the rest."""
    mesh = init_device_mesh("cpu", (2,))
    for name, module in reversed(list(model.named_modules())):
        if name.endswith(("encoder.layer.0", "encoder.layer.1", "lora_A.default")):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def fsdp1(model: nn.Module, *, use_orig_params: bool) -> nn.Module:
    kinds = {transformers.models.roberta.modeling_roberta.RobertaLayer}
    if use_orig_params:
        kinds |= {nn.Linear}  # units inside the adapted layers
    policy = ModuleWrapPolicy(kinds)
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=policy,
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
    )


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fsdp2": fsdp2,
    "fsdp1": lambda model: fsdp1(model, use_orig_params=True),
    "fsdp1-flat": lambda model: fsdp1(model, use_orig_params=False),
    "ddp": DistributedDataParallel,
}


CASES = [
    ("fsdp2", "lora"), ("fsdp2", "full"), ("fsdp2", "loha"), ("fsdp1", "lora"),
    ("fsdp1-flat", "full"),
    ("ddp", "full"),
]  # fmt: skip


def logged(callback: rs.StableRankCallback, model: nn.Module, rank: int) -> dict[str, float]:
    """What the callback adds to the log of the first step, called as the Trainer does."""
    state = transformers.TrainerState(is_world_process_zero=rank == 0, global_step=1)
    callback.on_step_end(None, state, transformers.TrainerControl(), model=model)
    logs = {"loss": 1.0}
    callback.on_log(None, state, transformers.TrainerControl(), model=model, logs=logs)
    return logs


def measured(wrapping: str, kind: str, rank: int) -> dict[str, Any]:
    """What the callback logs and ``probe`` finds, before and after a step of training."""
    model = plain(kind)
    full = (
        {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if kind == "full"
        else None
    )
    callback = rs.StableRankCallback(every=1, layers="query|value", per_layer=True, rtol=1e-6)
    state = transformers.TrainerState(is_world_process_zero=rank == 0)
    callback.on_init_end(None, state, transformers.TrainerControl(), model=model)
    trained(model)
    expected = model(**BATCH).loss.detach()
    wrapped = WRAPPINGS[wrapping](model)
    callback.on_train_begin(None, state, transformers.TrainerControl(), model=wrapped)
    found: dict[str, Any] = {"logs": logged(callback, wrapped, rank)}
    table = rs.probe(wrapped, full, layers="query|value", rtol=1e-6)
    found["rows"] = [dataclasses.asdict(row) for row in table.rows]
    loss = wrapped(**BATCH).loss  # training goes on, with the parameters where they were
    loss.backward()
    found["loss"] = [float(expected), float(loss.detach())]
    if rank == 0 and wrapping != "ddp":
        found["alone"] = alone(wrapped, full)
    dist.barrier()
    found["together"] = len(rs.probe(wrapped, full, layers="query").rows)
    return found


def alone(model: nn.Module, full: dict[str, Tensor] | None) -> str:
    """What ``probe`` says when the other process does not call it."""
    probe.WAIT = 0.2
    try:
        rs.probe(model, full)
    except ValueError as error:
        return str(error)
    finally:
        probe.WAIT = 100.0
    return "nothing"


def main() -> None:
    port, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    probe.WAIT = 100.0
    found = {}
    for wrapping, kind in CASES:
        found[f"{wrapping} {kind}"] = measured(wrapping, kind, rank)
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
