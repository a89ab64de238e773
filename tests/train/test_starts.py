"""Starts that change the base (PiSSA, OLoRA) and DoRA in a pack, against PEFT's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import Linear
from torch import Tensor
from torch.testing import assert_close

from conftest import save_model
from families import FAMILIES
from rankscope.linalg import Operator
from rankscope.train.adapters import AdapterPack
from rankscope.train.isolation import prove
from rankscope.train.pack import logits
from rankscope.train.packed import NotIsolated
from rankscope.train.run import Run
from training import (
    CPU,
    TASK,
    alone,
    encoded,
    losses_of,
    plain_model,
    run_alone,
    run_of,
    saved,
    trials_of,
)


def begun(run: Run, k: int, path: str, dtype: torch.dtype) -> Any:
    """Trial k before its first step: PEFT's own decomposition, in float32, the pack's heads. In
    float64 what is left of the base is float64, too."""
    trial, config = run.pack.trials[k], run.pack.config(k)
    config.init_lora_weights, config.inference_mode = trial.init_lora_weights, False
    model = get_peft_model(plain_model(path, torch.float32), config)
    state = run.pack.state(k, [group.values for group in run.pack.params])
    heads = {f"base_model.model.{n}": x.float() for n, x in state.items() if ".lora_" not in n}
    set_peft_model_state_dict(model, heads)
    pretrained = plain_model(path, torch.float32)
    model.to(dtype)
    for name, layer in layers_of(model).items():
        if dtype == torch.float64:
            W = pretrained.get_submodule(name).weight.detach().to(dtype)
            layer.base_layer.weight.data = W - layer.get_delta_weight("default")
    return model


def layers_of(model: Any) -> dict[str, Any]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize(
    ("architecture", "fixed"),
    [
        ("roberta", 'init_lora_weights = "pissa"'),
        ("gpt2", 'init_lora_weights = "pissa"'),
        ("roberta", 'init_lora_weights = "olora"'),
        ("roberta", 'init_lora_weights = "pissa"\nlora_plus_ratio = 4'),
    ],
)
def test_starts_that_change_the_base_equal_pefts_own(
    architecture: str, fixed: str, dtype: torch.dtype, tolerance: float,
    wide: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:  # fmt: skip
    """With dropout, at r = d as well, where nothing of the base is left. What is saved is the whole
    change, on the base as it was pretrained."""
    path = wide[architecture]
    trials = trials_of(architecture, path, ranks='[2, 20, "d"]', steps=6, fixed=fixed)
    train = encoded(path, tiny_data)
    run = run_of(trials, path, train, dtype)
    prove(run.pack, train, torch.arange(8))
    peft = [begun(run, k, path, dtype) for k in range(len(trials))]
    losses = losses_of(run)
    assert losses[-1].std() > 0.001
    for k, (trial, model) in enumerate(zip(trials, peft, strict=True)):
        assert (losses[:, k] - alone(model, trial, train)).abs().max() < tolerance, trial
        saved(run, k, tmp_path / str(k))
        again = PeftModel.from_pretrained(plain_model(path, dtype), tmp_path / str(k)).to(dtype)
        inputs, _ = train.batch(torch.arange(8))
        found, expected = (m.eval()(**inputs).logits for m in (again, model))
        assert_close(found, expected, rtol=0, atol=tolerance)


def effective(model: Any, name: str) -> Tensor:
    """W' by PEFT's own merge, float64."""
    weight = model.merge_and_unload().get_submodule(name).weight.detach().double()
    return weight.mT if "c_attn" in name else weight


@pytest.mark.parametrize("kind", ["pack", "alone"])
@pytest.mark.parametrize(
    ("architecture", "fixed"),
    [
        ("roberta", 'init_lora_weights = "pissa"'),
        ("gpt2", 'init_lora_weights = "pissa"\nuse_dora = true'),
        ("gpt2", "use_dora = true"),
        ("roberta", 'init_lora_weights = "olora"\nuse_dora = true'),
    ],
)
def test_spectra_are_those_of_the_change_from_the_pretrained_weight(
    architecture: str, fixed: str, kind: str, wide: dict[str, str], tiny_data: Path,
    tmp_path: Path
) -> None:  # fmt: skip
    """Against the float64 SVD of PEFT's merge of what is saved, minus W."""
    path = wide[architecture]
    trials = trials_of(architecture, path, ranks='[2, "d"]', steps=4, fixed=fixed)
    trials = [trial.model_copy(update={"lora_dropout": 0.0}) for trial in trials]
    train = encoded(path, tiny_data)
    if kind == "pack":
        run = run_of(trials, path, train, torch.float64)
    else:
        trials = trials[:1]
        run = run_alone(trials[0], path, train, torch.float64)
    losses_of(run)
    run.spectra.record(4, alive=run.alive)
    for k in range(len(trials)):
        saved(run, k, tmp_path / str(k))
        rows = run.spectra.frame(k).set_index(["layer", "matrix"])
        name = rows.index[0][0]
        base = plain_model(path, torch.float64)
        W = base.get_submodule(name).weight.detach().clone()
        W = W.mT if "c_attn" in name else W
        tuned = effective(
            PeftModel.from_pretrained(base, tmp_path / str(k)).to(torch.float64), name
        )
        for matrix, M in {"dW": tuned - W, "W+dW": tuned}.items():
            sigma, row = torch.linalg.svdvals(M), rows.loc[(name, matrix)]
            sr = float(sigma.square().sum() / sigma[0].square())
            # PeftTrial's base is rounded to float32
            slack = 1e-9 if kind == "pack" else 1e-4
            assert row["lower"] * (1 - slack) <= sr <= row["upper"] * (1 + slack), (matrix, k)
            assert row["stable_rank"] == pytest.approx(sr, rel=1e-3)
            assert row["frobenius_norm"] == pytest.approx(float(sigma.norm()), rel=slack)


def test_small_updates_do_not_cancel(wide: dict[str, str], tiny_data: Path) -> None:
    """One part in 10^12 of B0 A0, in float64: dW keeps its digits."""
    trials = trials_of(
        "roberta", wide["roberta"], ranks="2", steps=1, fixed='init_lora_weights = "pissa"'
    )[:1]
    run = run_of(trials, wide["roberta"], encoded(wide["roberta"], tiny_data), torch.float64)
    (site, *_) = run.pack.sites.values()
    generator = torch.Generator().manual_seed(0)
    change = 1e-12 * torch.randn(site.B[0][0, :, :2].shape, generator=generator).double()
    with torch.no_grad():
        B0 = site.B[0][0, :, :2].clone()
        site.B[0][0, :, :2] += change
        change = site.B[0][0, :, :2] - B0
    dW: Operator = next(iter(run.pack.updates())).dW
    expected = trials[0].scale * change @ site.A[0][0, :2].detach()
    assert_close(dW.to_dense()[0, 0], expected, rtol=1e-9, atol=0)


def test_dora_with_dropout_trains_one_at_a_time(wide: dict[str, str], tiny_data: Path) -> None:
    trials = trials_of("roberta", wide["roberta"], ranks="2", steps=1, fixed="use_dora = true")
    assert trials[0].lora_dropout > 0
    with pytest.raises(NotIsolated, match="with lora_dropout, DoRA applies W"):
        run_of(trials, wide["roberta"], encoded(wide["roberta"], tiny_data))


def test_a_start_in_layers_that_share_a_weight_is_the_pretrained_model(
    tmp_path: Path, tiny_data: Path
) -> None:
    """Zamba 2 has one block of attention under several names. PEFT's PiSSA takes the leading part
    out of the shared weight once for each, so that its model starts elsewhere; ours does not."""
    family = FAMILIES["zamba2"]
    path = save_model(tmp_path / "zamba2", family.model)
    batch = encoded(path, tiny_data).batch(torch.arange(4))[0]

    def first(fixed: str) -> Tensor:
        trials = trials_of("", path, targets=family.targets, ranks="[2, 4]", fixed=fixed)
        pack = AdapterPack(trials, model=path, task=TASK, device=CPU)
        pack.model.eval()
        with torch.no_grad():
            return logits(pack, batch)

    pissa = 'init_lora_weights = "pissa"'
    assert_close(first(pissa), first(""), rtol=1e-5, atol=1e-5)  # B = 0: the pretrained model
    (trial, *_) = trials_of("", path, targets=family.targets, ranks="[2]", fixed=pissa)
    peft = begun(run_of([trial], path, encoded(path, tiny_data)), 0, path, torch.float32).eval()
    with torch.no_grad():
        assert (peft(**batch).logits - first("")[0]).abs().max() > 1e-2
