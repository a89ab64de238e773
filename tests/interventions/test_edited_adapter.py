"""A whole adapter edited in one call, written, and opened again by plain PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

import rankscope as rs
from noisy import HEADS, adapter
from tiny import Case
from training import plain_model


def merged(model: str, folder: Path) -> Any:
    plain = plain_model(model, torch.float64)
    if plain.config.pad_token_id is None:
        plain.config.pad_token_id = 1
    return peft.PeftModel.from_pretrained(plain, folder).double().merge_and_unload().eval()


def weights(model: Any, layer: str) -> Tensor:
    found = model.get_submodule(layer)
    return found.weight.detach().mT if isinstance(found, Conv1D) else found.weight.detach()


CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 12},
    "rslora": {"r": 4, "lora_alpha": 12, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 12, "use_dora": True},
    "ranks": {"r": 4, "lora_alpha": 12, "rank_pattern": {r".*\.0\..*": 2}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("architecture", ["roberta", "gpt2", "llama"])
@pytest.mark.parametrize("how", [{"scale": 0.3}, {"top": 1}, {"restore": True}], ids=str)
def test_plain_peft_makes_of_it_the_model_with_dense_edits(
    architecture: str, settings: dict[str, Any], how: dict[str, Any],
    tiny_models: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    path = tiny_models[architecture]
    adapter(path, architecture, tmp_path / "before", **settings)
    found = rs.edit(tmp_path / "before", base=path, **how)
    found.save_pretrained(tmp_path / "after")
    plain, before, after = (
        plain_model(path, torch.float64),
        merged(path, tmp_path / "before"),
        merged(path, tmp_path / "after"),
    )
    changed = 0
    for layer in found.updates:
        W, dW = weights(plain, layer), weights(before, layer) - weights(plain, layer)
        U, s, Vh = torch.linalg.svd(dW, full_matrices=False)
        made = weights(after, layer) - W
        if "scale" in how:
            assert_close(made, 0.3 * dW, rtol=0, atol=1e-5)
        elif "top" in how:
            assert_close(made, s[0] * torch.outer(U[:, 0], Vh[0]), rtol=0, atol=1e-5)
        else:
            kept = rs.stable_rank(W + made).value
            wanted = max(rs.stable_rank(W).value, rs.stable_rank(W + dW).value)
            assert kept == pytest.approx(wanted, rel=1e-4)
        changed += not torch.allclose(made, dW, atol=1e-4)
    assert changed or "restore" in how  # where no layer has drifted below sr(W)
    heads = {key: x for key, x in before.state_dict().items() if HEADS[architecture] in key}
    assert heads
    for key, x in after.state_dict().items():  # all else is as it was
        layer = key.removesuffix(".weight")
        if layer not in found.updates:
            assert torch.equal(x, before.state_dict()[key]), key


def test_only_some_layers(tiny_models: dict[str, str], tmp_path: Path) -> None:
    path = tiny_models["roberta"]
    adapter(path, "roberta", tmp_path / "before", r=4, lora_alpha=12)
    found = rs.edit(tmp_path / "before", scale=0.0, layers=r"layer\.1\.")
    zero = {layer for layer, update in found.updates.items() if not update.to_dense().any()}
    assert zero == {layer for layer in found.updates if ".1." in layer}
    assert len(zero) * 2 == len(found.updates)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scale": 0.5, "layers": "nosuch"}, "expected a layer to edit; layers = 'nosuch' finds"),
        ({"scale": 0.5, "layers": "(("}, "layers: expected a regular expression"),
        ({"restore": True}, "restore needs base="),
        ({"scale": 0.5, "base": torch.eye(2)}, "base is the folder or hub id"),
        ({}, "exactly one of"),
    ],
)
def test_refusals(
    arguments: dict[str, Any], says: str, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    adapter(tiny_models["roberta"], "roberta", tmp_path, r=4, lora_alpha=12)
    with pytest.raises(ValueError, match=says):
        rs.edit(tmp_path, **arguments)


def test_what_is_no_adapter_is_refused(tiny_models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a PEFT adapter; found no adapter_config"):
        rs.edit(tiny_models["roberta"], scale=0.5)
    adapter(tiny_models["roberta"], "roberta", tmp_path, r=4, lora_alpha=12)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    update = rs.LowRank(B=torch.ones(3, 1), A=torch.ones(1, 3))
    with pytest.raises(ValueError, match="only for whole adapters"):
        rs.edit(update, scale=0.5, layers="x")  # type: ignore[call-overload]


@pytest.mark.filterwarnings("ignore")
def test_factors_of_a_stack_of_experts_are_refused(make_case: Callable[..., Case]) -> None:
    """PEFT has one pair for all experts of a layer, which no pair for each of them is."""
    case = make_case("mixtral", target_parameters=["experts.down_proj"], target_modules=[], r=2)
    with pytest.raises(
        ValueError, match=r"down_proj\[0\] can't be edited: factors of a stack of exp"
    ):
        rs.edit(case.adapter, scale=0.5)
