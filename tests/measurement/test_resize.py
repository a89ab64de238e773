"""Resized adapters: the error said is that of a dense SVD, and PEFT loads what is written."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscope.cli import main
from rankscope.measurement.measure import measure
from rankscope.measurement.resize import resize
from rankscope.measurement.resized import Resized
from rankscope.weights.peft_settings import peft_settings
from tiny import MODELS, Case, edited

CASES: dict[str, dict[str, Any]] = {
    "roberta": {
        "target_modules": ["query", "value", "word_embeddings"],
        "r": 6,
        "lora_alpha": 5,
        "use_rslora": True,
        "rank_pattern": {"value": 3},
        "modules_to_save": ["classifier"],
        "bias": "all",
    },
    "gpt2": {"target_modules": ["c_attn", "c_proj"], "r": 5, "lora_alpha": -3, "lora_bias": True},
    "convolutions": {
        "target_modules": ["one", "two", "three"],
        "r": 4,
        "alpha_pattern": {"two": 7},
    },
    "llama": {"target_modules": ["q_proj", "down_proj"], "r": 30},
}


def merged(model: str, adapter: Path) -> dict[str, Tensor]:
    """W + dW_k by PEFT, in float64."""
    torch.manual_seed(len(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(MODELS[model](), adapter)
        after = loaded.double().merge_and_unload()
    return {name: p.detach() for name, p in after.named_parameters()}


def nearest(dW: Tensor, k: int) -> tuple[float, float]:
    """Relative errors of the best matrix of rank k, by a dense SVD."""
    sigma = torch.linalg.svdvals(dW)
    tail = torch.cat([sigma[k:], sigma.new_zeros(1)])
    return float(tail.norm() / sigma.norm()), float(tail[0] / sigma[0])


@pytest.mark.parametrize("goal", [{"energy": 0.9}, {"rank": 2}, {"error": 0.3}], ids=str)
@pytest.mark.parametrize("model", CASES)
def test_peft_loads_it_and_the_error_is_that_of_a_dense_svd(
    model: str, goal: dict[str, Any], make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case = make_case(model, **CASES[model])
    found = resize(case.adapter, to=tmp_path / "out", **goal)
    after = merged(model, tmp_path / "out")
    layers = {cut.layer: cut for cut in found.layers}
    assert set(layers) <= set(case.changed())
    lost, whole = 0.0, 0.0
    for name, W in case.before.items():
        layer = name.removesuffix(".weight")
        dW, left = case.after[name] - W, case.after[name] - after[name]
        if layer not in layers or W.ndim < 2:  # heads, biases, and whatever was not adapted
            assert torch.equal(after[name], case.after[name])
            continue
        cut, dW, left = layers[layer], dW.flatten(1), left.flatten(1)
        assert cut.error == pytest.approx(float(left.norm() / dW.norm()), abs=1e-12)
        spectral = float(torch.linalg.svdvals(left)[0] / torch.linalg.svdvals(dW)[0])
        assert cut.spectral_error == pytest.approx(spectral, abs=1e-12)
        best, best_spectral = nearest(dW, cut.rank)  # float32 factors: near it, not equal
        assert (cut.error, cut.spectral_error) == pytest.approx((best, best_spectral), abs=1e-6)
        wanted = math.sqrt(1 - goal["energy"]) if "energy" in goal else goal.get("error")
        if wanted is None:
            assert cut.rank == min(goal["rank"], cut.r)
        else:
            assert cut.error <= wanted < nearest(dW, cut.rank - 1)[0]
        lost, whole = lost + float(left.norm()) ** 2, whole + float(dW.norm()) ** 2
    assert found.error == pytest.approx(math.sqrt(lost / whole), abs=1e-12)
    assert found.bytes_after == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert found.bytes_before == (case.adapter / "adapter_model.safetensors").stat().st_size


def factors(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A PEFT adapter of these tensors."""
    folder.mkdir()
    save_file(
        {f"base_model.model.{n}.weight": t for n, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def pair(layer: str, m: int, n: int, r: int = 4, size: float = 1.0) -> dict[str, Tensor]:
    return {f"{layer}.lora_B": size * noise(m, r), f"{layer}.lora_A": noise(r, n)}


def test_in_float64_the_written_error_is_the_best_one(tmp_path: Path) -> None:
    one = pair("q", 31, 17, 9)
    found = resize(factors(tmp_path / "a", one, r=9), to=tmp_path / "out", rank=3)
    dW = 8 / 9 * one["q.lora_B"] @ one["q.lora_A"]
    assert (found.layers[0].error, found.layers[0].spectral_error) == pytest.approx(
        nearest(dW, 3), abs=1e-12
    )
    assert found.layers[0].uncertainty < 1e-11


def test_a_budget_keeps_the_largest_singular_values_of_all_layers(tmp_path: Path) -> None:
    tensors = pair("a.q", 20, 12) | pair("b.q", 20, 12, size=3) | pair("c.q", 20, 12, size=1e-3)
    source = factors(tmp_path / "a", tensors, rank_pattern={}, alpha_pattern={"b.q": 2})
    whole = (source / "adapter_model.safetensors").stat().st_size
    for budget in (2600, 3000, 3900, whole - 1, whole):
        out = tmp_path / str(budget)
        found = resize(source, to=out, budget=budget)
        size = (out / "adapter_model.safetensors").stat().st_size
        assert budget - 8 * 32 - 64 < size <= budget  # one more direction would not fit
        assert size == found.bytes_after
        sigma = {row.layer: torch.linalg.svdvals(dense(tensors, row)) for row in found.layers}
        kept = [float(sigma[c.layer][k]) for c in found.layers for k in range(1, c.rank)]
        gone = [float(sigma[c.layer][k]) for c in found.layers for k in range(c.rank, 4)]
        assert found.threshold == pytest.approx(min(kept), rel=1e-12) if kept else True
        assert max(gone, default=0.0) <= min(kept, default=math.inf)
    assert [cut.rank for cut in found.layers] == [4, 4, 4]
    with pytest.raises(ValueError, match=r"expected a budget of \d+ bytes at least, .*; found 9"):
        resize(source, to=tmp_path / "small", budget=9)


def dense(tensors: dict[str, Tensor], cut: Any) -> Tensor:
    return cut.scale * tensors[f"{cut.layer}.lora_B"] @ tensors[f"{cut.layer}.lora_A"]


def test_zero_updates_and_equal_spectra(tmp_path: Path) -> None:
    zero = {"z.q.lora_B": torch.zeros(6, 4), "z.q.lora_A": noise(4, 5).float()}
    flat = {"f.q.lora_B": torch.eye(6)[:, :4].clone(), "f.q.lora_A": torch.eye(5)[:4].clone()}
    source = factors(tmp_path / "a", zero | flat)
    for name, goal, k in (
        ("half", {"energy": 0.5}, 2), ("all", {"energy": 1.0}, 4), ("error", {"error": 0.71}, 2),
        ("less", {"error": 0.70}, 3), ("budget", {"budget": 800}, None),
    ):  # fmt: skip
        found = resize(source, to=tmp_path / name, **goal)
        cuts = {cut.layer: cut for cut in found.layers}
        if k is not None:
            assert (cuts["f.q"].rank, cuts["f.q"].error) == (k, pytest.approx(math.sqrt(1 - k / 4)))
        assert (cuts["z.q"].rank, cuts["z.q"].error) == (0, 0.0)
        (row,) = [r for r in measure(tmp_path / name).rows if r.layer == "z.q"]
        assert (row.frobenius_norm, row.r) == (0, 1)
    alone = resize(factors(tmp_path / "z", zero), to=tmp_path / "zero", rank=2)
    assert (alone.error, alone.spectral_error) == (0.0, 0.0)


def test_an_error_counts_the_rounding_of_what_is_written(tmp_path: Path) -> None:
    """Rank 3 of exactly rank-3 factors in bfloat16: the spectrum says 0, the file does not."""
    B, A = noise(40, 8, dtype=torch.float32), noise(8, 30, dtype=torch.float32)
    B[:, 3:] = 0
    tensors = {"q.lora_B": B.bfloat16(), "q.lora_A": A.bfloat16()}
    source = factors(tmp_path / "a", tensors, r=8)
    loose = resize(source, to=tmp_path / "loose", error=0.1).layers[0]
    assert loose.rank == 3
    assert 1e-4 < loose.error < 0.02
    tight = resize(source, to=tmp_path / "tight", error=1e-6).layers[0]
    assert (tight.rank, tight.note) == (8, "factors kept as they are")
    assert tight.error < 1e-12


def spectrum_of(m: int, n: int, r: int, fall: float, seed: int) -> tuple[Tensor, Tensor]:
    """Factors (m, r), (r, n) of an update whose singular values are fall^i; their columns are
    mixed, so that those of the cut ones must be rounded anew."""
    generator = torch.Generator().manual_seed(seed)
    U, V, M = (
        torch.linalg.qr(torch.randn(d, r, generator=generator).double()).Q for d in (m, n, r)
    )
    root = fall ** (torch.arange(r) / 2)
    return U * root @ M, (V * root @ M).mT.contiguous()


def smallest(dW: Tensor, scale: float, dtype: torch.dtype, r: int, limit: float) -> int:
    """The least k whose rounded factors, made here from a dense SVD, lie within the limit."""
    U, sigma, Vh = torch.linalg.svd(dW, full_matrices=False)
    for k in range(1, r):
        root = (sigma[:k] / abs(scale)).sqrt()
        B, A = (U[:, :k] * root).to(dtype).double(), (root[:, None] * Vh[:k]).to(dtype).double()
        if float((dW - abs(scale) * B @ A).norm() / sigma.norm()) <= limit:
            return k
    return r


@pytest.mark.parametrize("limit", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_error_asked_for_is_that_of_the_file(
    dtype: torch.dtype, limit: float, tmp_path: Path
) -> None:
    """Layers of one shape with other spectra, and one that is zero, with a negative scale: they
    are cut together, and each as if alone."""
    r, scale = 12, -8 / 12
    before = {}
    for seed, fall in enumerate((0.2, 0.5, 0.62, 1e-5)):
        B, A = spectrum_of(40, 30, r, fall, seed)
        before |= {f"l{seed}.q.lora_B": B.to(dtype), f"l{seed}.q.lora_A": A.to(dtype)}
    before |= {f"z.q.lora_{x}": torch.zeros_like(before[f"l0.q.lora_{x}"]) for x in "AB"}
    source = factors(tmp_path / "a", before, r=r, lora_alpha=-8)
    found = {cut.layer: cut for cut in resize(source, to=tmp_path / "out", error=limit).layers}
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.pop("z.q").rank == 0
    more = {}
    for layer, cut in found.items():
        B, A = (after[f"base_model.model.{layer}.lora_{x}.weight"] for x in "BA")
        assert B.dtype == A.dtype == dtype
        dW = scale * before[f"{layer}.lora_B"].double() @ before[f"{layer}.lora_A"].double()
        left, sigma = dW - scale * B.double() @ A.double(), torch.linalg.svdvals(dW)
        true = float(left.norm() / sigma.norm()), float(torch.linalg.svdvals(left)[0] / sigma[0])
        assert true[0] <= limit
        assert (cut.error, cut.spectral_error) == pytest.approx(true, abs=1e-13)
        assert cut.uncertainty < 2e-11
        assert cut.rank == len(A) == smallest(dW, scale, dtype, r, limit)
        assert (cut.note == "factors kept as they are") is (cut.rank == r)
        tails = [nearest(dW, k)[0] for k in range(r + 1)]
        exact = next(k for k, tail in enumerate(tails) if tail <= limit)
        assert cut.rank >= exact
        more[layer] = cut.rank - exact
    if dtype == torch.float32 or (dtype, limit) == (torch.bfloat16, 1e-3):
        assert any(more.values()) is (dtype == torch.bfloat16)  # its rounding asks for more
    assert more["l0.q"] < r


def test_one_direction_more_makes_room_for_rounding(tmp_path: Path) -> None:
    """A limit just above the exact error of rank 3, which bfloat16 misses by its rounding."""
    B, A = (x.bfloat16() for x in spectrum_of(40, 30, 12, 0.5, 7))
    source = factors(tmp_path / "a", {"q.lora_B": B, "q.lora_A": A}, r=12, lora_alpha=12)
    dW = B.double() @ A.double()
    limit = nearest(dW, 3)[0] * (1 + 1e-6)
    (cut,) = resize(source, to=tmp_path / "out", error=limit).layers
    assert cut.rank == smallest(dW, 1.0, torch.bfloat16, 12, limit) == 4
    assert nearest(dW, 4)[0] < cut.error < limit


def test_an_error_below_what_an_alpha_can_hold_says_what_to_type(tmp_path: Path) -> None:
    up, down = noise(9, 7), noise(7, 8)
    tensors = {"lora_unet_q.lora_up.weight": up, "lora_unet_q.lora_down.weight": down}
    alpha = torch.tensor(0.7, dtype=torch.float64)
    source = tmp_path / "a.safetensors"
    save_file(tensors | {"lora_unet_q.alpha": alpha}, source)
    off = abs(float(alpha.float()) / 0.7 - 1)  # 1.7e-8
    message = (
        "q: expected float64 factors and a float32 alpha within error = 1e-09; rounding alone "
        rf"leaves {off:.2g}\. Nothing was written\. Type --error 1.8e-08, or more\."
    )
    refused(source, tmp_path / "out", message, error=1e-9)
    (cut,) = resize(source, to=tmp_path / "out", error=1.8e-8).layers
    assert cut.error == pytest.approx(off, rel=1e-6)
    assert cut.rank == 7


def test_factors_that_would_overflow_are_refused(tmp_path: Path) -> None:
    """Of B (float32) and A (float16) both would be written equally large."""
    big = {"q.lora_B": 1e9 * torch.eye(4), "q.lora_A": 1e4 * torch.eye(4).half()}
    source = factors(tmp_path / "a", big)
    refused(source, tmp_path / "out", "q: expected .* range of float16; .* --rank 4")
    assert resize(source, to=tmp_path / "out", rank=4).error == 0


def test_names_that_end_alike_keep_their_own_ranks(tmp_path: Path) -> None:
    tensors = pair("q", 9, 9) | pair("a.q", 9, 9, size=2) | pair("b.a.q", 9, 9, size=5)
    tensors["a.q.lora_B"][:, 2:] = 0
    tensors["b.a.q.lora_B"][:, 1:] = 0
    found = resize(factors(tmp_path / "a", tensors), to=tmp_path / "out", energy=1.0)
    assert {c.layer: c.rank for c in found.layers} == {"a.q": 2, "b.a.q": 1, "q": 4}
    config = peft.LoraConfig.from_pretrained(tmp_path / "out")
    from peft.utils.other import get_pattern_key

    for cut in found.layers:
        key = get_pattern_key(config.rank_pattern.keys(), cut.layer)
        assert config.rank_pattern.get(key, config.r) == cut.rank
        key = get_pattern_key(config.alpha_pattern.keys(), cut.layer)
        assert config.alpha_pattern.get(key, config.lora_alpha) / cut.rank == pytest.approx(2)
    assert peft_settings({"q": 1, "a.q": 2}, {"q": 1, "a.q": 1})["rank_pattern"] == {"a\\.q": 2}


KOHYA = "lora_unet_down_blocks_0_attentions_1_to_q", "lora_te_text_model_encoder_layers_3_mlp_fc1"


def kohya(path: Path, extra: dict[str, Tensor] | None = None) -> Path:
    linear, conv = KOHYA
    tensors = {
        f"{linear}.lora_up.weight": noise(20, 6).half(),
        f"{linear}.lora_down.weight": noise(6, 12).half(),
        f"{linear}.alpha": torch.tensor(3.0).half(),
        f"{conv}.lora_up.weight": noise(10, 5).half()[:, :, None, None].clone(),
        f"{conv}.lora_down.weight": noise(5, 6, 3, 3).half(),
        "lora_unet_norm.diff": noise(7),
    }
    metadata = {"ss_network_dim": "6", "ss_network_alpha": "3", "sshs_model_hash": "x", "k": "v"}
    save_file(tensors | (extra or {}), path, metadata=metadata)
    return path


def test_kohya_files_keep_their_scale_by_alpha(tmp_path: Path) -> None:
    """Of the layer without an alpha all readers take alpha = r: the scale 1."""
    source = kohya(tmp_path / "style.safetensors")
    found = resize(source, to=tmp_path / "out", rank=3)
    before, after = load_file(source), load_file(tmp_path / "out" / "style.safetensors")
    for layer, scale in zip(KOHYA, (3 / 6, 1.0), strict=True):
        up, down = (before[f"{layer}.lora_{x}.weight"].double().flatten(1) for x in ("up", "down"))
        new = [after[f"{layer}.lora_{x}.weight"] for x in ("up", "down")]
        assert new[0].dtype == torch.float16
        assert new[1].shape[1:] == before[f"{layer}.lora_down.weight"].shape[1:]
        dW = scale * up @ down
        s = float(after[f"{layer}.alpha"]) / 3
        left = dW - s * new[0].double().flatten(1) @ new[1].double().flatten(1)
        (cut,) = [c for c in found.layers if c.layer == layer]
        assert s == scale == cut.scale
        assert cut.error == pytest.approx(float(left.norm() / dW.norm()), abs=1e-12)
        assert cut.error == pytest.approx(nearest(dW, 3)[0], abs=1e-3)
    assert torch.equal(after["lora_unet_norm.diff"], before["lora_unet_norm.diff"])
    with safe_open(tmp_path / "out" / "style.safetensors", "pt") as file:
        assert file.metadata() == {
            "ss_network_dim": "3", "ss_network_alpha": "Dynamic", "k": "v",
        }  # fmt: skip
    size = (tmp_path / "out" / "style.safetensors").stat().st_size
    assert found.bytes_after == size


def test_an_alpha_that_16_bits_do_not_hold_is_kept(tmp_path: Path) -> None:
    up, down = noise(20, 7).half(), noise(7, 12).half()
    tensors = {"lora_unet_q.lora_up.weight": up, "lora_unet_q.lora_down.weight": down}
    save_file(tensors | {"lora_unet_q.alpha": torch.tensor(0.7).half()}, tmp_path / "a.safetensors")
    resize(tmp_path / "a.safetensors", to=tmp_path / "out", rank=5)
    alpha = load_file(tmp_path / "out" / "a.safetensors")["lora_unet_q.alpha"]
    assert float(alpha) / 5 == pytest.approx(float(torch.tensor(0.7).half()) / 7, rel=1e-7)


def test_diffusers_files_keep_their_settings_in_the_header(tmp_path: Path) -> None:
    tensors = {f"unet.{n}.weight": t for n, t in (pair("a", 9, 8) | pair("b", 9, 8)).items()}
    settings = {"unet.r": 4, "unet.lora_alpha": 6, "unet.target_modules": ["a", "b"]}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(settings)})
    found = resize(path, to=tmp_path / "out", energy=0.8)
    rows = measure(tmp_path / "out" / path.name).rows
    assert {row.layer: (row.r, row.scale) for row in rows} == {
        cut.layer: (cut.rank, 1.5) for cut in found.layers
    }
    assert found.format == "diffusers"
    with safe_open(tmp_path / "out" / path.name, "pt") as file:
        kept = json.loads(file.metadata()["lora_adapter_metadata"])
    assert kept["unet.target_modules"] == ["a", "b"]
    assert (tmp_path / "out" / path.name).stat().st_size == found.bytes_after


def refused(source: Path, out: Path, message: str, **goal: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        resize(source, to=out, **(goal or {"rank": 1}))
    assert "\n" not in str(error.value)
    assert not out.exists()
    assert not list(out.parent.glob(".out.*"))


def test_what_is_no_plain_lora_is_refused_by_name(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    dora = make_case("roberta", target_modules=["query"], r=2, use_dora=True)
    refused(dora.adapter, out, r"query: DoRA: its update is not s B A")
    pissa = edited(make_case("roberta", target_modules=["query"], r=2), tmp_path / "p")
    config = json.loads((pissa / "adapter_config.json").read_text())
    (pissa / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    refused(pissa, out, r"expected plain LoRA; init_lora_weights 'pissa' changed the base")
    config = config | {"use_dora": True}  # whose magnitudes are gone
    (pissa / "adapter_config.json").write_text(json.dumps(config))
    refused(pissa, out, r"expected lora_magnitude_vector of .*query, as use_dora = true says")
    loha = make_case("roberta", peft.LoHaConfig, target_modules=["query"], r=2)
    refused(loha.adapter, out, r"expected peft_type LORA, found LOHA")
    refused(loha.base, out, r"expected an adapter with LoRA factors; found none")
    scale = {f"{KOHYA[0]}.dora_scale": noise(20, 1)}
    refused(kohya(tmp_path / "d.safetensors", scale), out, r"to_q: dora_scale beside B and A")
    names = [f"lora_x.hada_w{i}_{x}" for i in (1, 2) for x in "ab"]
    hada = dict(zip(names, (noise(9, 2), noise(2, 8), noise(9, 2), noise(2, 8)), strict=True))
    refused(kohya(tmp_path / "h.safetensors", hada), out, r"found kohya, lycoris")
    save_file({"q.lora_A": noise(2, 5), "q.lora_B": noise(5, 2)}, tmp_path / "l.safetensors")
    refused(tmp_path / "l.safetensors", out, r"expected PEFT's format .*; found loralib")
    broken = pair("q", 5, 5)
    broken["q.lora_A"][0, 0] = math.nan
    refused(factors(tmp_path / "n", broken), out, r"expected finite factors; A of q holds NaN")
    experts = make_case("mixtral", target_parameters=["experts.down_proj"], target_modules=[], r=2)
    refused(experts.adapter, out, r"mlp.experts.*: factors of a stack of experts")


def test_out_is_new_and_no_goal_is_senseless(tmp_path: Path) -> None:
    source = factors(tmp_path / "a", pair("q", 5, 5))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("a", "file", "link"):
        with pytest.raises(ValueError, match="expected a folder that is not there yet"):
            resize(source, to=tmp_path / name, rank=1)
    assert (tmp_path / "file").read_text() == "mine"
    for name in ("no/out", "file/out"):
        with pytest.raises(ValueError, match=r"expected a folder .* to make it in; found none"):
            resize(source, to=tmp_path / name, rank=1)
    refused(source, source / "out", "expected a folder outside")
    with pytest.raises(ValueError, match=r"budget of (\d+) bytes .* found 9. Type --budget \1, or"):
        resize(source, to=tmp_path / "out", budget=9)
    for goal in (
        {"energy": 0.0}, {"energy": 1.1}, {"error": 1.0}, {"error": math.nan}, {"rank": 0},
        {"rank": True}, {"budget": -1}, {}, {"rank": 1, "energy": 0.5},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            resize(source, to=tmp_path / "out", **goal)  # type: ignore[arg-type]


def test_the_command_writes_the_same_and_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = factors(tmp_path / "a", pair("q", 15, 15) | {"classifier": noise(3, 5)})
    command = ["resize", str(source), "--to", str(tmp_path / "out"), "--budget", "1kB"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "resize.json").read_text())
    assert printed["kept"] == ["base_model.model.classifier.weight"]
    assert printed["bytes_after"] <= 1000
    again = Resized(**{k: printed[k] for k in ("source", "to", "format", "goal")},
                    bytes_before=0, bytes_after=0, layers=(), kept=())  # fmt: skip
    assert again.goal == {"budget": 1000}
    assert main(command) == 2
    shutil.rmtree(tmp_path / "out")
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"error {printed['error']:.4g}" in out
    with pytest.raises(SystemExit):
        main([*command[:4], "--budget", "many"])
    assert "expected bytes, such as 3000000" in capsys.readouterr().err
