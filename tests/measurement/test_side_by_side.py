"""Several sources in one table: each number is the one that the source alone has."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from rankscope.cli import main
from rankscope.measurement.measure import measure
from tiny import Case


@pytest.fixture
def pair(make_case: Callable[..., Case], tmp_path: Path) -> tuple[Case, Path]:
    """An adapter, and another three times as large that lacks a layer."""
    case = make_case("roberta", target_modules=["query", "value"], r=4, lora_alpha=8)
    other = tmp_path / "other"
    shutil.copytree(case.adapter, other)
    file = other / "adapter_model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if "layer.0.attention.self.query" not in n}
    save_file({n: t * 3 if "lora_B" in n else t for n, t in kept.items()}, file)
    return case, other


def test_each_row_is_that_of_the_source_alone(
    pair: tuple[Case, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, other = pair
    both = [str(case.adapter), str(other)]
    typed = ["measure", *both, "--base", str(case.base)]
    assert main([*typed, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["rankscope", "sources", "base", "rows", "skipped"]
    assert printed["sources"] == both
    for source in both:
        alone = measure(source, base=case.base).to_dict()
        rows = [line for line in printed["rows"] if line.get("source") == source]
        assert [{k: v for k, v in row.items() if k != "source"} for row in rows] == [
            {k: pytest.approx(v, rel=1e-2) if isinstance(v, float) else v for k, v in row.items()}
            for row in alone["rows"]
        ]
        skipped = [line for line in printed["skipped"] if line["source"] == source]
        assert skipped == [{"source": source, **line} for line in alone["skipped"]]
    assert main([*typed, "--csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table.columns[:3]) == ["source", "layer", "matrix"]
    assert list(table["source"].unique()) == both
    file = tmp_path / "rows.parquet"
    assert main([*typed, "--parquet", str(file)]) == 0
    stored = pd.read_parquet(file)
    assert list(stored["source"]) == list(table["source"])
    assert list(stored.columns) == list(table.columns)


def test_the_table_has_a_column_a_source(
    pair: tuple[Case, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    case, other = pair
    assert main(["measure", str(case.adapter), str(other)]) == 0
    out = capsys.readouterr().out
    assert f"[1] {case.adapter}" in out
    assert "sr [2]" in out
    assert "drift" not in out  # without a base there is none
    lacks, has = (
        next(line.split() for line in out.splitlines() if f"layer.0.attention.self.{name}" in line)
        for name in ("query", "value")
    )
    assert (len(lacks), len(has)) == (3, 4)
    assert has[2] == has[3]  # a stable rank knows no scale
    assert "[2] lacks 1 of" in out
    assert main(["measure", str(case.adapter), str(other), "--base", str(case.base)]) == 0
    out = capsys.readouterr().out
    assert "drift [2]" in out
    line = next(x for x in out.splitlines() if "layer.0.attention.self.value" in x and "W+dW" in x)
    expected = []
    for source in (case.adapter, other):
        rows = {(row.layer, row.matrix): row for row in measure(source, base=case.base).rows}
        expected.append(rows[line.split()[0], "W+dW"].stable_rank)
    assert expected[0] != pytest.approx(expected[1], rel=0.05)
    assert [float(x) for x in line.split()[2:4]] == pytest.approx(expected, rel=1e-2)


def test_what_takes_one_source(pair: tuple[Case, Path], capsys: pytest.CaptureFixture[str]) -> None:
    case, other = pair
    assert main(["measure", str(case.adapter), str(other), "--suggest", "90"]) == 2
    assert "--suggest: expected one source; found 2" in capsys.readouterr().err
