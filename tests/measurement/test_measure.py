"""The table that ``measure`` returns: the JSON contract, the frame, the summary; no tensor is
lost."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import rankscope
from rankscope.measurement.measure import measure
from rankscope.measurement.row import Row, compared
from rankscope.measurement.table import Table, kind_of
from rankscope.weights import Skipped
from tiny import stable_rank

LAYERS = [
    f"encoder.layer.{i}.attention.self.{kind}" for i in range(3) for kind in ("query", "value")
]
FIELDS = [
    "layer", "matrix", "shape", "r", "scale", "stable_rank", "lower", "upper", "spectral_norm",
    "frobenius_norm", "effective_rank", "read_from", "note", "drift", "rho", "r90",
    "r95", "r99",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter of six layers, one of them zero, and its base."""
    root = tmp_path_factory.mktemp("folders")
    generator = torch.Generator().manual_seed(0)
    adapter, base = {}, {}
    for i, layer in enumerate(LAYERS):
        adapter[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(4, 20, generator=generator)
        adapter[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(
            30, 4, generator=generator
        ) * (i > 0)
        base[f"{layer}.weight"] = torch.randn(30, 20, generator=generator)
    adapter["base_model.model.classifier.bias"] = torch.zeros(3)
    for name, tensors in (("adapter_model", adapter), ("model", base)):
        (root / name).mkdir()
        save_file(tensors, root / name / f"{name}.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (root / "adapter_model" / "adapter_config.json").write_text(json.dumps(config))
    return root / "adapter_model", root / "model"


@pytest.fixture(scope="module")
def table(folders: tuple[Path, Path]) -> Table:
    return measure(folders[0], base=folders[1])


def test_the_json_contract(table: Table, folders: tuple[Path, Path]) -> None:
    found = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert list(found) == ["rankscope", "source", "base", "rows", "skipped"]
    assert (found["rankscope"], found["source"], found["base"]) == (
        rankscope.__version__,
        *map(str, folders),
    )
    assert all(list(row) == FIELDS for row in found["rows"])
    assert found == table.to_dict()
    row = found["rows"][4]
    assert (row["layer"], row["matrix"], row["shape"], row["r"], row["scale"]) == (
        LAYERS[1],
        "dW",
        [30, 20],
        4,
        2.0,
    )
    assert (row["read_from"], row["note"]) == ("factors", None)
    assert 1 <= row["lower"] <= row["stable_rank"] <= row["upper"] <= 4
    assert row["effective_rank"] > row["stable_rank"] / 2
    (skipped,) = found["skipped"]
    assert list(skipped) == ["layer", "why"]
    assert skipped["layer"] == "classifier.bias"


def test_without_a_base_there_is_dW_alone_and_base_is_null(
    folders: tuple[Path, Path], table: Table
) -> None:
    alone = measure(folders[0])
    assert alone.to_dict()["base"] is None
    assert alone.rows == tuple(replace(row, rho=None) for row in table.rows if row.matrix == "dW")


def test_measuring_twice_gives_the_same_numbers(folders: tuple[Path, Path], table: Table) -> None:
    torch.manual_seed(random.Random(0).randrange(2**31))
    before = torch.get_rng_state()
    assert measure(folders[0], base=folders[1]) == table
    assert torch.equal(torch.get_rng_state(), before)


def test_rtol_and_certify(folders: tuple[Path, Path], table: Table) -> None:
    proved = measure(folders[0], base=folders[1], certify=True, rtol=1e-6)
    for row, other in zip(proved.rows, table.rows, strict=True):
        if row.stable_rank is not None:
            assert (row.upper - row.lower) / row.stable_rank < 1e-5
            assert row.stable_rank == pytest.approx(other.stable_rank, rel=2e-3)


def test_layers_chooses_and_lists_the_rest(folders: tuple[Path, Path]) -> None:
    chosen = measure(folders[0], layers=r"layer\.[12]\..*query$")
    assert [row.layer for row in chosen.rows] == [LAYERS[2], LAYERS[4]]
    assert {s.layer for s in chosen.skipped} == {
        LAYERS[0],
        LAYERS[1],
        LAYERS[3],
        LAYERS[5],
        "classifier.bias",
    }
    assert all("left out by layers" in s.why for s in chosen.skipped)


def test_the_frame_has_numbers_where_json_has_numbers(table: Table) -> None:
    frame = table.to_pandas()
    assert list(frame) == [*FIELDS[:2], "m", "n", *FIELDS[3:]]
    assert len(frame) == 18
    assert set(frame["m"]) == {30}
    assert set(frame["n"]) == {20}
    assert frame["r"].dtype == "Int64"
    assert frame["stable_rank"].dtype == "float64"
    assert frame["r"].isna().sum() == 6
    assert frame["stable_rank"].isna().sum() == 1
    nothing = Table("x", None, (), ()).to_pandas()
    assert list(nothing) == list(frame)
    assert list(nothing.dtypes) == list(frame.dtypes)


def test_the_frame_goes_into_csv_and_parquet(table: Table, tmp_path: Path) -> None:
    frame = table.to_pandas()
    frame.to_parquet(tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rows.parquet"), frame)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert pd.read_csv(tmp_path / "rows.csv")["stable_rank"].tolist() == pytest.approx(
        frame["stable_rank"].tolist(), nan_ok=True
    )


def test_the_summary_takes_medians_per_kind(table: Table) -> None:
    summary = table.summary().set_index(["kind", "matrix"])
    assert len(summary) == 6
    assert set(summary["layers"]) == {3}
    rows = {(row.layer, row.matrix): row for row in table.rows}
    value = summary.loc[("encoder.layer.*.attention.self.value", "dW")]
    ranks = sorted(rows[layer, "dW"].stable_rank for layer in LAYERS[1::2])
    assert (value["stable_rank"], value["lowest"], value["highest"]) == (
        ranks[1],
        ranks[0],
        ranks[2],
    )
    assert value["utilisation"] == pytest.approx(ranks[1] / 4)
    assert value["relative"] == pytest.approx(ranks[1] / 20)
    query = summary.loc[("encoder.layer.*.attention.self.query", "dW")]
    assert query["undefined"] == 1
    assert math.isnan(query["drift"])
    logs = sorted(
        math.log(rows[layer, "W+dW"].stable_rank / rows[layer, "W"].stable_rank)
        for layer in LAYERS[1::2]
    )
    drift = summary.loc[("encoder.layer.*.attention.self.value", "W+dW")]["drift"]
    assert drift == pytest.approx(math.expm1(logs[1]))
    rho = sorted(rows[layer, "dW"].rho for layer in LAYERS[1::2])[1]
    assert value["rho"] == rho
    assert summary.loc[("encoder.layer.*.attention.self.value", "W+dW")]["rho"] == rho
    assert math.isnan(summary.loc[("encoder.layer.*.attention.self.value", "W")]["rho"])


def test_drift_and_rho_against_the_singular_values(
    folders: tuple[Path, Path], table: Table
) -> None:
    adapter, base = (load_file(next(folder.glob("*.safetensors"))) for folder in folders)
    for layer in LAYERS:
        part = f"base_model.model.{layer}"
        dW = 2.0 * (adapter[f"{part}.lora_B.weight"] @ adapter[f"{part}.lora_A.weight"]).double()
        W = base[f"{layer}.weight"].double()
        rho = float(torch.linalg.svdvals(dW)[0] / torch.linalg.svdvals(W)[0])
        drift = stable_rank(W + dW) / stable_rank(W) - 1
        of_W, update, tuned = (row for row in table.rows if row.layer == layer)
        assert (of_W.rho, of_W.drift, update.drift) == (None, None, None)
        assert update.rho == tuned.rho == pytest.approx(rho, rel=1e-3)
        assert tuned.drift == pytest.approx(drift, abs=2e-3)


def test_rho_of_a_base_of_zeros_is_undefined() -> None:
    row = Row(
        "a", "W", (2, 2), None, None, None, None, None, 0.0, 0.0, None, "weights", "is exactly zero"
    )
    update = replace(row, matrix="dW", spectral_norm=1.0, note=None)
    assert compared([row, update])[1].rho is None


def test_the_summary_of_nothing_is_empty() -> None:
    assert Table("x", None, (), (Skipped("a", "b"),)).summary().empty


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (
            "roberta.encoder.layer.3.attention.self.query",
            "roberta.encoder.layer.*.attention.self.query",
        ),
        ("h.10.mlp.experts[3]", "h.*.mlp.experts[*]"),
        ("0.weight2.1", "*.weight2.*"),
        ("lm_head", "lm_head"),
    ],
)
def test_kinds(layer: str, kind: str) -> None:
    assert kind_of(layer) == kind


@settings(max_examples=25)
@given(st.data())
def test_no_tensor_of_a_checkpoint_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever its names, shapes and dtypes: each tensor is a row or is named as skipped."""
    names = data.draw(
        st.lists(
            st.from_regex(r"[a-c]{1,2}(\.[0-9w]{1,2}){0,2}(\.weight)?", fullmatch=True),
            unique=True,
            min_size=1,
        )
    )
    dtypes = st.sampled_from(
        [torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.float8_e4m3fn, torch.bool]
    )
    shapes = st.lists(st.integers(0, 4), max_size=4)
    tensors = {name: torch.ones(data.draw(shapes)).to(data.draw(dtypes)) for name in names}
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file(tensors, folder / "model.safetensors")
    table = measure(folder)
    said = [row.layer for row in table.rows] + [skipped.layer for skipped in table.skipped]
    assert sorted(said) == sorted(distinct_layers(names))
    against = measure(folder, base=folder)
    assert {row.layer for row in against.rows} == {row.layer for row in table.rows}
    assert (
        len({(row.layer, row.matrix) for row in against.rows})
        == len(against.rows)
        == 3 * len(table.rows)
    )


def distinct_layers(names: list[str]) -> list[str]:
    """Names less ".weight", which only a name keeps that would be another tensor's without it."""
    return [
        n if n.removesuffix(".weight") in set(names) - {n} else n.removesuffix(".weight")
        for n in names
    ]


def test_a_and_a_weight_are_two_layers(tmp_path: Path) -> None:
    """Of other shapes, and one of them of a dtype that is read as packed:
    neither is taken for the other."""
    generator = torch.Generator().manual_seed(0)
    a, weight = torch.randn(6, 4, generator=generator), torch.randn(5, 3, generator=generator)
    for i, kept in enumerate((weight, weight.to(torch.float8_e4m3fn), weight.flatten())):
        files = [tmp_path / f"{i}{part}.safetensors" for part in ("tuned", "base")]
        save_file({"a": 2 * a, "a.weight": kept}, files[0])
        save_file({"a": a, "a.weight": kept}, files[1])
        rows = {(row.layer, row.matrix): row for row in measure(files[0], base=files[1]).rows}
        for matrix, size in (("W", 1), ("dW", 1), ("W+dW", 2)):
            expected = size * float(a.double().norm())
            assert rows["a", matrix].frobenius_norm == pytest.approx(expected, rel=1e-6)
        assert (("a.weight", "W") in rows) == (i == 0)


def test_two_spellings_of_one_layer_are_two_rows(tmp_path: Path) -> None:
    """kohya wrote lora_te_ and lora_te1_ over the years; in one file both lead to one layer of the
    base."""
    B, A = torch.ones(6, 2), torch.eye(2, 4)
    spellings = [[f"lora_{te}_q.lora_{way}" for te in ("te", "te1")] for way in ("up", "down")]
    tensors = {
        f"{name}.weight": t for names, t in zip(spellings, (B, A), strict=True) for name in names
    }
    save_file({name: t.clone() for name, t in tensors.items()}, tmp_path / "lora.safetensors")
    save_file({"text_encoder.q.weight": torch.ones(6, 4)}, tmp_path / "base.safetensors")
    table = measure(tmp_path / "lora.safetensors", base=tmp_path / "base.safetensors")
    assert len({(row.layer, row.matrix) for row in table.rows}) == len(table.rows) == 6


def test_rows_are_frozen(table: Table) -> None:
    with pytest.raises(AttributeError):
        table.rows[0].layer = "x"  # type: ignore[misc]
    assert isinstance(table.rows[0], Row)
