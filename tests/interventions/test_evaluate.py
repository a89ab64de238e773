"""Edited variants in packs against plain transformers: W' - W by PEFT's own merge, edited as a
dense float64 matrix, put into the model, evaluated alone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from families import FAMILIES
from noisy import adapter
from rankscope.evaluation.evaluate import Evaluation
from rankscope.evaluation.pack import Edited
from rankscope.evaluation.trained import read_trained
from rankscope.interventions.settings import Variant, variants
from rankscope.interventions.variants import Edits
from rankscope.train.loading import load_model
from rankscope.train.model import weight_of
from training import TASK, encoded, plain_model

CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 12},
    "rslora": {"r": 4, "lora_alpha": 12, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 12, "use_dora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 12,
        "rank_pattern": {r".*\.0\..*": 2},
        "alpha_pattern": {r".*\.1\..*": 5},
    },
}


def merged(model: str, folder: Path) -> Any:
    """What plain PEFT makes of it, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = plain_model(model, torch.float64)
        if plain.config.pad_token_id is None:
            plain.config.pad_token_id = 1
        return peft.PeftModel.from_pretrained(plain, folder).double().merge_and_unload().eval()


def oracle(W: Tensor, dW: Tensor, one: Variant, made: Tensor) -> Tensor:
    """The edit of a dense matrix, by its definition. Random directions are taken from ``made``."""
    U, s, Vh = np.linalg.svd(dW.numpy(), full_matrices=False)
    top = np.linalg.svd(W.numpy(), compute_uv=False)
    place, k = np.arange(len(s)), int(one.level)
    if one.family == "scale":
        return one.level * dW
    if one.family == "random":
        found = np.linalg.svd(made.numpy(), compute_uv=False)
        assert found == pytest.approx(s, abs=1e-10 * s[0])
        return made
    if one.family == "restore":
        M, sigma, Nh = np.linalg.svd((W + dW).numpy(), full_matrices=False)
        wanted = (top**2).sum() / top[0] ** 2
        if (sigma**2).sum() / sigma[0] ** 2 >= wanted:
            return dW
        low, high = 0.0, sigma[0]
        for _ in range(200):
            tau = (low + high) / 2
            enough = (np.minimum(sigma, tau) ** 2).sum() / tau**2 >= wanted
            low, high = (tau, high) if enough else (low, tau)
        return torch.from_numpy((M * np.minimum(sigma, low)) @ Nh) - W
    values = {
        "cap": np.minimum(s, one.level * top[0]),
        "top": s * (place < k),
        "without_top": s * (place >= k),
        "flat": np.where(place < k, np.sqrt((s**2).sum() / max(k, 1)), 0),
    }
    return torch.from_numpy((U * values[one.family]) @ Vh)


def of_eight(path: str, layers: list[str], data: Any) -> Evaluation:
    """Packs of eight variants, in float64."""
    return Evaluation(
        lambda: load_model(path, TASK), layers, TASK, data, K=8, dtype=torch.float64,
        say=pytest.fail,
    )  # fmt: skip


def evaluated_alone(model: Any, W: dict[str, Tensor], data: Any) -> tuple[Tensor, float]:
    """Logits of a plain model with these weights (m, n) in place, and its mean loss."""
    placed = copy.deepcopy(model)
    for name, weight in W.items():
        layer = placed.get_submodule(name)
        layer.weight.data.copy_(weight.mT if isinstance(layer, Conv1D) else weight)
    inputs, labels = data.batch(torch.arange(len(data)))
    with torch.no_grad():
        out = placed(**inputs, labels=labels)
    return out.logits, float(out.loss)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("architecture", ["roberta", "gpt2", "llama"])
def test_every_edit_equals_the_dense_one_evaluated_by_transformers(
    architecture: str, settings: dict[str, Any], tiny_models: dict[str, str], tiny_data: Path,
    tmp_path: Path
) -> None:  # fmt: skip
    path = tiny_models[architecture]
    adapter(path, architecture, tmp_path, **settings)
    base = load_model(path, TASK).double()
    trained = read_trained(tmp_path, load_model(path, TASK), TASK, base_path=path)
    theirs = merged(path, tmp_path)
    W = {name: weight_of(base.get_submodule(name)) for name in trained.updates}
    dW = {name: weight_of(theirs.get_submodule(name)) - W[name] for name in W}
    edits = Edits(trained.updates, W, chosen=W, name="a")
    one_layer = {v.family: v for v in variants(layers=[next(iter(W))]) if v.scope != "all"}
    wanted = [v for v in (*variants(), *one_layer.values()) if edits.possible(v)]
    assert {v.family for v in wanted} >= {"scale", "cap", "restore", "top", "without_top", "random"}
    data = encoded(path, tiny_data, "validation")
    evaluation = of_eight(path, list(W), data)
    for start in range(0, len(wanted), 8):
        chunk = wanted[start : start + 8]
        made = [edits.make(one) for one in chunk]
        found = evaluation([Edited(trained, updates) for updates in made])
        for one, updates, result in zip(chunk, made, found, strict=True):
            edited = [name for name in W if one.scope in ("all", name)]
            dense = {
                name: oracle(W[name], dW[name], one, updates[name].to_dense())
                if name in edited
                else dW[name]
                for name in W
            }
            for name in W:
                assert_close(updates[name].to_dense(), dense[name], rtol=0, atol=1e-5)
            logits, loss = evaluated_alone(theirs, {n: W[n] + dense[n] for n in W}, data)
            assert result.loss == pytest.approx(loss, abs=1e-6), one
            assert np.array_equal(result.answers, logits.argmax(-1).numpy()), one


def test_full_fine_tunes(tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path) -> None:
    """All weights have moved: edits are of the linear layers, the rest stays as trained."""
    path = tiny_models["roberta"]
    tuned = plain_model(path, torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.1 * torch.randn_like(p))
    tuned.save_pretrained(tmp_path)
    base = load_model(path, TASK)
    trained = read_trained(tmp_path, base, TASK, base_path=path)
    assert len(trained.updates) == 12  # q, k, v, output, intermediate, output: two blocks
    assert any("embeddings" in name for name in trained.rest)
    W = {name: weight_of(base.get_submodule(name)).double() for name in trained.updates}
    edits = Edits(trained.updates, W, chosen=[n for n in W if "attention" in n], name="a")
    chunk = [v for v in variants(["scale", "restore", "top"]) if edits.possible(v)][:8]
    data = encoded(path, tiny_data, "validation")
    evaluation = of_eight(path, list(W), data)
    made = [edits.make(one) for one in chunk]
    found = evaluation([Edited(trained, updates) for updates in made])
    theirs = tuned.double().eval()
    for one, result in zip(chunk, found, strict=True):
        edited = {
            n: W[n] + oracle(W[n], weight_of(theirs.get_submodule(n)) - W[n], one, torch.zeros(1))
            for n in W
            if "attention" in n
        }
        _, loss = evaluated_alone(theirs, edited, data)
        assert result.loss == pytest.approx(loss, abs=1e-6), one
    adapter(path, "roberta", tmp_path / "a", r=2)
    other = read_trained(tmp_path / "a", load_model(path, TASK), TASK, base_path=path)
    updates = {name: W[name].new_zeros(W[name].shape) for name in ()} | dict(other.updates)
    after = evaluation([Edited(other, updates)])[0]  # the base's own embeddings are back
    whole = encoded(path, tiny_data, "validation")
    _, loss = evaluated_alone(merged(path, tmp_path / "a"), {}, whole)
    assert after.loss == pytest.approx(loss, abs=1e-6)


def test_a_model_that_reads_padding_is_given_rows_of_one_length(
    tiny_data: Path, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """ConvBERT's convolutions reach into padding: each row equals the one that stands alone."""
    model = FAMILIES["convbert"].model()
    model.save_pretrained(tmp_path / "base")
    path = str(tmp_path / "base")
    adapted = peft.get_peft_model(
        load_model(path, TASK),
        peft.LoraConfig(target_modules=["query", "value"], r=2, modules_to_save=["classifier"]),
    )
    torch.manual_seed(3)
    for p in adapted.parameters():
        p.data.add_(0.3 * torch.randn_like(p) * p.requires_grad)
    adapted.save_pretrained(tmp_path / "adapter")
    trained = read_trained(tmp_path / "adapter", load_model(path, TASK), TASK, base_path=path)
    data = encoded(tiny_models["bert"], tiny_data, "validation")
    assert len(data.lengths.unique()) > 1
    evaluation = Evaluation(
        lambda: load_model(path, TASK), list(trained.updates), TASK, data, K=2, dtype=torch.float64
    )
    (result,) = evaluation([Edited(trained, dict(trained.updates))])
    merged_model = adapted.merge_and_unload().double().eval()
    losses = []
    with torch.no_grad():
        for row in range(len(data)):
            inputs, labels = data.batch(torch.tensor([row]))
            losses.append(float(merged_model(**inputs, labels=labels).loss))
    with torch.no_grad():
        inputs, labels = data.batch(torch.arange(len(data)))
        padded = float(merged_model(**inputs, labels=labels).loss)
    assert abs(padded - float(np.mean(losses))) > 1e-6  # padding counts
    assert result.loss == pytest.approx(float(np.mean(losses)), abs=1e-7)


def test_an_adapter_of_stacked_experts_is_refused_by_name(tmp_path: Path) -> None:
    """Not as another model's layers."""
    model = FAMILIES["mixtral"].model()
    model.save_pretrained(tmp_path / "base")
    path = str(tmp_path / "base")
    stacks = ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(target_parameters=stacks, r=2, modules_to_save=["score"])
    peft.get_peft_model(load_model(path, TASK), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"experts.*can't be edited: factors of a stack"):
        read_trained(tmp_path / "adapter", load_model(path, TASK), TASK, base_path=path)
