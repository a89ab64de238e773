"""Ranks that would have been enough, and that PEFT takes them as they are printed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankscope.cli import main
from rankscope.linalg import Dense, LowRank
from rankscope.measurement.measure import measure
from rankscope.measurement.row import energy_ranks, measured_together
from rankscope.weights import Matrix
from rankscope.weights.lora_config import pattern_value
from rankscope.weights.peft_settings import peft_settings
from tiny import MODELS, Case, edited

SETTINGS = {
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "r": 6,
    "lora_alpha": 3,
    "use_rslora": True,
    "alpha_pattern": {"down_proj": 5},
}


def uneven(case: Case, folder: Path) -> Path:
    """The case's adapter with spectra that fall more steeply from layer to layer."""
    edited(case, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for i, name in enumerate(sorted(name for name in tensors if "lora_A" in name)):
        steps = torch.arange(len(tensors[name]), dtype=torch.float32)
        tensors[name] = torch.linalg.qr(tensors[name].mT).Q.mT * (0.95 - 0.12 * i) ** steps[:, None]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return folder


def test_energy_ranks_count_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    sigma = torch.randn(3, 8, generator=generator).abs().sort(descending=True).values.double()
    energy = sigma.numpy() ** 2
    expected = [
        tuple(
            next(k for k in range(1, 9) if own[:k].sum() >= share * own.sum())
            for share in (0.90, 0.95, 0.99)
        )
        for own in energy
    ]
    assert energy_ranks(sigma) == expected
    # 0.9 exactly is enough
    both = torch.tensor([[3.0, 1.0], [1.0, 0.0]])
    assert energy_ranks(both) == [(1, 2, 2), (1, 1, 1)]


@pytest.mark.parametrize("share", [90, 95, 99])
def test_peft_builds_what_is_suggested(
    make_case: Callable[..., Case], tmp_path: Path, share: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each layer gets its own rank, and keeps its scale."""
    adapter = uneven(make_case("llama", **SETTINGS), tmp_path / "uneven")
    table = measure(adapter)
    main(["measure", str(adapter), "--suggest", str(share)])
    printed = json.loads(capsys.readouterr().out)
    assert printed == table.peft_settings(share / 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            MODELS["llama"](), peft.LoraConfig(target_modules=SETTINGS["target_modules"], **printed)
        )
    wanted = {
        layer: found[(90, 95, 99).index(share)] for layer, found in table.energy_ranks.items()
    }
    assert len(wanted) == 6
    assert len(set(wanted.values())) > 1
    for row in table.rows:
        module = model.base_model.model.get_submodule(row.layer)
        assert module.r["default"] == wanted[row.layer]
        assert module.scaling["default"] == pytest.approx(row.scale, rel=1e-12)


def test_the_settings_survive_in_adapter_config(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    """As lines of adapter_config.json, with the keys in PEFT's order: what is read is what was
    suggested."""
    case = make_case("llama", **SETTINGS)
    table = measure(case.adapter)
    suggested = table.peft_settings(0.95)
    config = json.loads(
        (edited(case, tmp_path / "a", **suggested) / "adapter_config.json").read_text()
    )
    loaded = peft.LoraConfig.from_pretrained(tmp_path / "a")
    assert (loaded.r, loaded.rank_pattern) == (config["r"], suggested["rank_pattern"])


def test_experts_share_the_largest_of_their_ranks() -> None:
    wanted = {
        "layers.0.experts.up[0]": 2,
        "layers.0.experts.up[1]": 5,
        "layers.1.q": 2,
        "layers.10.q": 3,
    }
    found = peft_settings(wanted, dict.fromkeys(wanted, 0.5))
    assert found["r"] in (2, 3, 5)
    values = {"layers.0.experts.up": 5, "layers.1.q": 2, "layers.10.q": 3}
    for layer, rank in values.items():
        assert pattern_value(found["rank_pattern"], layer, found["r"]) == rank
        assert pattern_value(found["alpha_pattern"], layer, found["lora_alpha"]) == rank / 2


def test_nothing_is_suggested_where_nothing_was_learnt_or_all_is_of_full_rank(
    make_case: Callable[..., Case],
) -> None:
    """Nor is a head that was saved in full a matter of rank, and DoRA's updates use no share of
    one."""
    dora = make_case(
        "roberta", target_modules=["query"], r=2, use_dora=True, modules_to_save=["classifier"]
    )
    table = measure(dora.adapter, base=dora.base)
    assert table.peft_settings(0.9) == {}
    assert table.summary()["utilisation"].isna().all()
    lora = make_case("roberta", target_modules=["query"], r=2, modules_to_save=["classifier"])
    assert measure(lora.adapter, base=lora.base).peft_settings(0.99)["r"] <= 2
    with pytest.raises(ValueError, match="expected a share out of"):
        measure(dora.adapter).peft_settings(0.5)


def test_two_checkpoints_get_a_suggestion_too(
    make_case: Callable[..., Case], tmp_path: Path
) -> None:
    """The difference of a merged LoRA of rank 2 needs rank 2, whatever the layer."""
    case = make_case("llama", target_modules=["q_proj"], r=2, lora_alpha=64)
    tensors = load_file(case.base / "model.safetensors")
    (tmp_path / "merged").mkdir()
    merged = {
        name: case.after[name].float() if name in case.after else t for name, t in tensors.items()
    }
    save_file(merged, tmp_path / "merged" / "model.safetensors")
    settings = measure(tmp_path / "merged", base=case.base, layers="q_proj").peft_settings(0.99)
    assert settings == {
        "r": 2,
        "lora_alpha": 2,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
    }


def test_matrices_measured_together_are_as_measured_alone() -> None:
    """Factors of one shape among others, a zero one, one that is not finite, small and dense
    ones."""
    generator = torch.Generator().manual_seed(3)

    def factors(r: int, scale: float = 2.0) -> LowRank:
        B, A = torch.randn(9, r, generator=generator), torch.randn(r, 7, generator=generator)
        return LowRank(B=B, A=A, scale=scale)

    broken = LowRank(B=torch.full((9, 2), torch.nan), A=torch.ones(2, 7))
    zero = LowRank(B=torch.zeros(9, 2), A=torch.ones(2, 7))
    dense = [Dense(torch.randn(9, 7, generator=generator)) for _ in range(2)]
    operators = [factors(2), factors(3), zero, factors(2, 0.5), broken, *dense, factors(2).mT, None]
    matrices = [
        Matrix(f"l{i}", "dW", (7, 9) if i == 7 else (9, 7), op, "factors", 2, 1.0, f"note {i}")
        for i, op in enumerate(operators)
    ]
    together: dict[str, tuple[int, ...]] = {}
    alone: dict[str, tuple[int, ...]] = {}
    rows = measured_together(matrices, rtol=1e-3, certify=False, spectra=together)
    single = [
        measured_together([matrix], rtol=1e-3, certify=False, spectra=alone)[0]
        for matrix in matrices
    ]
    assert together == alone
    assert len(alone) == 6
    for row, one in zip(rows, single, strict=True):
        for name in (
            "stable_rank",
            "lower",
            "upper",
            "spectral_norm",
            "frobenius_norm",
            "effective_rank",
        ):
            value, wanted = getattr(row, name), getattr(one, name)
            assert value is wanted is None or value == pytest.approx(wanted, rel=1e-12), (
                row.layer,
                name,
            )
        assert (row.layer, row.note, row.shape, row.r) == (one.layer, one.note, one.shape, one.r)
    dW = operators[3].to_dense()
    assert rows[3].stable_rank == pytest.approx(
        float(dW.norm() ** 2 / torch.linalg.svdvals(dW)[0] ** 2), rel=1e-12
    )
    assert rows[2].stable_rank is None
    assert "zero" in rows[2].note
    assert rows[4].stable_rank is None
