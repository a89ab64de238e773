"""A full fine-tune as an adapter: PEFT gives W + dW_k back, and what is not in it is named."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankscope.cli import main
from rankscope.linalg import leading as directions
from rankscope.linalg.leading import leading
from rankscope.measurement.extract import extract
from rankscope.measurement.resize import resize
from tiny import MODELS


def tuned(model: str, folder: Path) -> tuple[Path, Path, nn.Module, nn.Module]:
    """A base and its fine-tune, on disk and in memory; a weight has a decaying spectrum of
    changes."""
    torch.manual_seed(1)
    before = MODELS[model]()
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.parameters():
            noise = torch.randn(parameter.shape) * 0.02
            if parameter.ndim == 2:
                U, sigma, Vh = torch.linalg.svd(noise, full_matrices=False)
                noise = U * (sigma * 0.6 ** torch.arange(len(sigma))) @ Vh
            parameter += noise
    before.save_pretrained(folder / "base")
    after.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned", before, after


def merged(model: nn.Module, adapter: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = peft.PeftModel.from_pretrained(copy.deepcopy(model), adapter).double()
        return {name: p.detach() for name, p in whole.merge_and_unload().named_parameters()}


@pytest.mark.parametrize("goal", [{"energy": 0.9}, {"rank": 3}, {"error": 0.2}], ids=str)
@pytest.mark.parametrize("model", ["roberta", "gpt2", "llama"])
def test_peft_gives_the_nearest_update_back(
    model: str, goal: dict[str, Any], tmp_path: Path
) -> None:
    base, full, before, after = tuned(model, tmp_path)
    found = extract(full, base=base, to=tmp_path / "out", **goal)
    now = merged(before, tmp_path / "out")
    W = {name: p.detach().double() for name, p in before.named_parameters()}
    layers, lost = {cut.layer: cut for cut in found.layers}, {one.name for one in found.lost}
    square, whole = 0.0, 0.0
    for name, new in after.named_parameters():
        dW = new.detach().double() - W[name]
        cut = layers.get(name.removesuffix(".weight"))
        if cut is None:
            assert name in lost
            assert torch.equal(now[name], W[name])
            continue
        assert name not in lost
        left = W[name] + dW - now[name]
        sigma = torch.linalg.svdvals(dW)
        assert cut.error == pytest.approx(float(left.norm() / dW.norm()), abs=1e-12)
        spectral = float(torch.linalg.svdvals(left)[0] / sigma[0])
        assert abs(cut.spectral_error - spectral) <= cut.uncertainty < 1e-3
        tails = [float(sigma[k:].norm() / sigma.norm()) for k in range(len(sigma) + 1)]
        assert cut.error == pytest.approx(tails[cut.rank], abs=1e-6)
        wanted = math.sqrt(1 - goal["energy"]) if "energy" in goal else goal.get("error")
        if wanted is None:
            assert cut.rank == min(3, *cut.shape)
        else:
            assert tails[cut.rank] <= wanted < tails[cut.rank - 1]
        square, whole = square + float(left.norm()) ** 2, whole + float(dW.norm()) ** 2
    assert found.error == pytest.approx(math.sqrt(square / whole), abs=1e-12)
    assert found.bytes_after == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert any("embed" in name or "wte" in name for name in lost)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is (model == "gpt2")


@pytest.mark.parametrize("limit", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_error_asked_for_is_that_of_the_file(
    dtype: torch.dtype, limit: float, tmp_path: Path
) -> None:
    """Of checkpoints stored in any dtype: W' - W is that of the stored numbers."""
    base, full, _, _ = tuned("llama", tmp_path)
    stored = {}
    for folder in (base, full):
        state = load_file(folder / "model.safetensors")
        stored[folder] = {name: t.to(dtype) for name, t in state.items()}
        save_file(stored[folder], folder / "model.safetensors", metadata={"format": "pt"})
    found = extract(full, base=base, to=tmp_path / "out", error=limit)
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for cut in found.layers:
        W, new = (stored[folder][f"{cut.layer}.weight"].double() for folder in (base, full))
        B, A = (after[f"base_model.model.{cut.layer}.lora_{x}.weight"].double() for x in "BA")
        left, sigma = new - W - B @ A, torch.linalg.svdvals(new - W)
        assert cut.error == pytest.approx(float(left.norm() / sigma.norm()), abs=1e-12)
        assert cut.error <= limit < float(sigma[cut.rank - 1 :].norm() / sigma.norm())
        assert cut.rank == len(A)


def test_an_error_below_float32_says_what_to_type(tmp_path: Path) -> None:
    base, full, _, _ = tuned("llama", tmp_path)
    before, state = load_file(base / "model.safetensors"), load_file(full / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(before | {name: state[name]}, full / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="rounding alone leaves") as refusal:
        extract(full, base=base, to=tmp_path / "out", error=1e-9)
    typed = float(re.findall(r"Type --error ([\d.e-]+), or more", str(refusal.value))[0])
    (cut,) = extract(full, base=base, to=tmp_path / "out", error=typed).layers
    assert 0.9 * typed < cut.error < cut.error + 1e-14 < typed
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    B, A = (after[f"base_model.model.{cut.layer}.lora_{x}.weight"].double() for x in "BA")
    dW = state[name].double() - before[name].double()
    assert float((dW - B @ A).norm() / dW.norm()) == pytest.approx(cut.error, abs=1e-14)


def test_a_budget_and_a_second_cut(tmp_path: Path) -> None:
    base, full, _, _ = tuned("roberta", tmp_path)
    found = extract(full, base=base, to=tmp_path / "out", budget=12_000)
    size = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert 11_000 < size <= 12_000
    assert len({cut.rank for cut in found.layers}) > 1
    again = resize(tmp_path / "out", to=tmp_path / "smaller", rank=1)
    assert {cut.layer: cut.r for cut in again.layers} == {c.layer: c.rank for c in found.layers}
    with pytest.raises(ValueError, match=r"expected a budget of \d+ bytes at least"):
        extract(full, base=base, to=tmp_path / "less", budget=100)


def test_a_head_that_the_base_lacks_is_kept_whole(tmp_path: Path) -> None:
    base, full, before, after = tuned("roberta", tmp_path)
    tensors = load_file(base / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith("classifier")}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    found = extract(full, base=base, to=tmp_path / "out", rank=2)
    heads = [name for name in tensors if name.startswith("classifier")]
    assert sorted(found.kept) == sorted(heads)
    now, new = merged(before, tmp_path / "out"), dict(after.named_parameters())
    assert all(torch.equal(now[name], new[name].double()) for name in heads)


def test_what_did_not_change_is_not_in_it_and_rounding_is_said(tmp_path: Path) -> None:
    base, full, _, _ = tuned("llama", tmp_path)
    before, state = load_file(base / "model.safetensors"), load_file(full / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    other = "model.layers.1.self_attn.q_proj.weight"
    state = {n: t if n == other else before[n] for n, t in state.items()}
    state[name] = (before[name] + 1e-3 * state[name]).bfloat16()
    save_file(state, full / "model.safetensors", metadata={"format": "pt"})
    found = extract(full, base=base, to=tmp_path / "out", rank=4)
    notes = {f"{cut.layer}.weight": cut.note for cut in found.layers}
    assert set(notes) == {name, other}
    assert found.lost == ()
    assert notes[other] is None
    assert "rounding" in (notes[name] or "")


def test_refusals_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, full, _, _ = tuned("roberta", tmp_path)
    out = tmp_path / "out"

    def said(*arguments: str, message: str) -> None:
        capsys.readouterr()
        goal = ["--error", "1e-9"] if "float32" in message else ["--rank", "1"]
        assert main(["extract", *arguments, "--to", str(out), *goal]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()

    said(str(base), "--base", str(base), message="expected a linear layer whose weight changed")
    said(str(full), "--base", str(base), message="expected float32 factors within error = 1e-09")
    other, _, _, _ = tuned("llama", tmp_path / "other")
    said(str(full), "--base", str(other), message="another model")
    alike, _, _, _ = tuned("gpt2", tmp_path / "alike")  # its head has the shape of an embedding
    said(str(alike), "--base", str(base), message="found 1 of its 29 tensors, not transformer.h.0")
    adapter = tmp_path / "adapter"
    extract(full, base=base, to=adapter, rank=1)
    said(str(adapter), "--base", str(base), message="found an adapter. Type: rankscope resize")
    state = load_file(full / "model.safetensors")
    shutil.copytree(full, tmp_path / "broken")
    state["roberta.encoder.layer.0.attention.self.query.weight"][0, 0] = math.nan
    save_file(state, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    said(str(tmp_path / "broken"), "--base", str(base), message="expected finite weights")


def test_a_weight_stored_as_whole_numbers_is_lost_and_said(tmp_path: Path) -> None:
    base, full, _, _ = tuned("roberta", tmp_path)
    state = load_file(full / "model.safetensors")
    name = "roberta.encoder.layer.0.attention.self.query.weight"
    state[name] = (100 * state[name]).to(torch.int8)
    save_file(state, full / "model.safetensors", metadata={"format": "pt"})
    lost = {one.name: one.why for one in extract(full, base=base, to=tmp_path / "o", rank=1).lost}
    assert lost[name] == "stored as int8, not as floating-point numbers"


def test_the_command_says_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, full, _, _ = tuned("roberta", tmp_path)
    command = ["extract", str(full), "--base", str(base), "--error", "0.3", "--to"]
    assert main([*command, str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "changed, but not in the adapter" in out
    assert "a bias, a norm or another vector" in out
    written = json.loads((tmp_path / "out" / "resize.json").read_text())
    assert all(one["share"] > 0 for one in written["lost"] if one["share"] is not None)
    assert {one["why"] for one in written["lost"]} >= {"an embedding"}


def wide(folder: Path) -> tuple[Path, Path, dict[str, Tensor]]:
    """Two layers large enough for block Lanczos, and their changes."""
    g = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (160, 120), "b.weight": (120, 160)}
    base = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    moved = {}
    for name, shape in shapes.items():
        U, _, Vh = torch.linalg.svd(torch.randn(shape, generator=g), full_matrices=False)
        moved[name] = base[name] + (U * 0.8 ** torch.arange(len(Vh))) @ Vh
    for part, tensors in (("base", base), ("tuned", moved)):
        (folder / part).mkdir()
        save_file(tensors, folder / part / "model.safetensors")
    changes = {name: moved[name].double() - base[name].double() for name in shapes}
    return folder / "base", folder / "tuned", changes


@pytest.mark.parametrize("misses", [False, True])
@pytest.mark.parametrize("goal", [{"rank": 5}, {"budget": 13_000}], ids=str)
def test_large_layers_are_cut_along_their_leading_directions(
    goal: dict[str, int], misses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the float64 SVD; also where Lanczos is made to miss the largest direction, which is
    seen and answered by the whole decomposition."""
    calls = []

    def counted(M: Tensor, k: int) -> Any:
        calls.append(k)
        found = leading(M, k + 1)
        assert found is not None
        return (found[0][1:], found[1][:, 1:]) if misses else (found[0][:k], found[1][:, :k])

    monkeypatch.setattr(directions, "leading", counted)
    base, full, changes = wide(tmp_path)
    result = extract(full, base=base, to=tmp_path / "out", **goal)
    assert len(calls) == 2
    for cut in result.layers:
        dW = changes[f"{cut.layer}.weight"]
        sigma = torch.linalg.svdvals(dW)
        assert cut.error == pytest.approx(float(sigma[cut.rank :].norm() / sigma.norm()), rel=1e-6)
        spectral = float(sigma[cut.rank] / sigma[0])
        assert abs(cut.spectral_error - spectral) <= cut.uncertainty + 1e-6
