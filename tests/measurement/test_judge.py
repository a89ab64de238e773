"""Judging finished runs: the numbers are those of ``measure``, the place that of the reference."""

from __future__ import annotations

import json
import math
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankscope.cli import main
from rankscope.measurement.judge import NAMES, condition, judge, sources
from rankscope.measurement.measure import measure
from rankscope.report.standing import shipped, standing
from tiny import Case, stable_rank

DATA = Path(__file__).parents[2] / "docs" / "results" / "minilm-glue"


@pytest.fixture
def case(make_case: Callable[..., Case]) -> Case:
    return make_case("roberta", target_modules=["query", "value"], r=4, lora_alpha=8)


def test_the_numbers_against_dense_matrices(case: Case) -> None:
    found = judge(case.adapter, base=case.base)
    layers = case.changed()
    sr = {k: np.array([stable_rank(case.dense(n, k)) for n in layers]) for k in ("W", "dW", "W+dW")}
    top = {
        k: np.array([float(torch.linalg.matrix_norm(case.dense(n, k), 2)) for n in layers])
        for k in ("W", "dW")
    }
    logs = np.log(sr["W+dW"] / sr["W"])
    assert found.drift == pytest.approx(math.expm1(np.median(logs)), rel=1e-3)
    assert found.lowest_drift == pytest.approx(math.expm1(logs.min()), rel=1e-3)
    assert found.highest_drift == pytest.approx(math.expm1(logs.max()), rel=1e-3)
    assert found.rho == pytest.approx(np.median(top["dW"] / top["W"]), rel=1e-3)
    assert found.highest_rho == pytest.approx((top["dW"] / top["W"]).max(), rel=1e-3)
    assert found.utilisation == pytest.approx(np.median(sr["dW"]) / 4, rel=1e-6)
    assert (found.layers, found.undefined) == (len(layers), 0)
    assert {line["matrix"] for line in found.kinds} == {"dW", "W+dW"}
    assert set(NAMES) <= set(vars(found))


def zeroed(case: Case, folder: Path, layers: str) -> Path:
    shutil.copytree(case.adapter, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t * 0 if layers in n and "lora_B" in n else t for n, t in tensors.items()}, file)
    return folder


def test_a_zero_update_has_no_drift_of_dw_but_counts(case: Case, tmp_path: Path) -> None:
    found = judge(zeroed(case, tmp_path / "zero", "lora"), base=case.base)
    assert (found.drift, found.rho) == (pytest.approx(0, abs=1e-3), 0)
    assert (found.utilisation, found.stable_rank) == (None, None)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("rho > 1.5", False), ("rho>=.5", True), ("drift < -0.2", True), ("drift<-2e-1", True),
        ("rho > 1.5 or drift < 0", True), ("rho > 1.5 and drift < 0", False),
        ("highest_rho <= 0.9 and rho < 1 and drift < 0", True),
    ],
)  # fmt: skip
def test_conditions(text: str, holds: bool, case: Case) -> None:
    from dataclasses import replace

    one = replace(judge(case.adapter, base=case.base), rho=0.5, drift=-0.3, highest_rho=0.9)
    assert condition(text).holds(one) is holds
    with pytest.raises(ValueError, match=r"expected utilisation of .*; found no value"):
        condition("utilisation > 0").holds(replace(one, utilisation=None))


@pytest.mark.parametrize(
    "text",
    [
        "", "rho", "rho > ", "rho > x", "rho == 1", "__import__('os')", "rho > 1 or", "rho > 1.2.3",
        "rho > 1 and drift < 0 or rho < 2", "size > 1", "rho > nan", "rho > 1; drift < 0",
    ],
)  # fmt: skip
def test_no_other_condition_is_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a condition such as 'rho > 1\.5'"):
        condition(text)


def test_the_shipped_reference_is_that_of_the_results() -> None:
    """Write it again: python tools/reference.py"""
    tool = runpy.run_path(str(DATA.parents[2] / "tools" / "reference.py"))
    assert json.dumps(shipped()) == json.dumps(json.loads(tool["text"]()))


def supported() -> dict[str, Any]:
    """The shipped reference as if SST-2's threshold, 15 % [14, 32] of sr(W), had been shown."""
    found = shipped()
    (sst2,) = (one for one in found["thresholds"] if one["task"] == "SST-2")
    numbers = {"half_ratio": 0.15, "half_ratio_low": 0.14, "half_ratio_high": 0.32}
    sst2 |= numbers | {"answer": "supported", "direction": "falls"}
    return found


def test_no_threshold_that_was_not_shown() -> None:
    for one in standing(-0.90, 0.1, shipped()):
        (known,) = (x for x in shipped()["thresholds"] if x["task"] == one["task"])
        shown = known["answer"] == "supported"
        assert (one["place"] == "no threshold") == (not shown)
        assert (known["reason"] in one["sentence"]) == (not shown)


def test_places_beside_a_threshold() -> None:

    def place(drift: float | None) -> dict[str, str]:
        return {one["task"]: one["place"] for one in standing(drift, 0.1, supported())}

    assert place(-0.90) == {"CoLA": "no threshold", "MRPC": "no threshold", "SST-2": "past"}
    assert [place(d)["SST-2"] for d in (-0.8, -0.6, 0.0, 0.5)] == [
        "at",
        "before",
        "before",
        "before",
    ]
    assert place(None)["SST-2"] == "no drift"
    (sst2,) = (one for one in standing(-0.90, 99.0, supported()) if one["task"] == "SST-2")
    trials = [t["drift"] for t in shipped()["trials"] if t["task"] == "SST-2"]
    less = sum(abs(math.log1p(d)) < math.log(10) for d in trials)
    assert sst2["drift_share"] == less / len(trials)
    assert sst2["rho_share"] is None  # that study's tables are older than rho
    trials = [{"model": "m", "task": "t", "drift": 0.0, "rho": rho} for rho in (0.1, 0.2, None)]
    known = {"thresholds": [sst2 | {"model": "m", "task": "t", "answer": "", "reason": ""}]}
    known = {
        "thresholds": [dict.fromkeys(shipped()["thresholds"][0]) | t for t in known["thresholds"]]
    }
    assert standing(0.0, 0.15, known | {"trials": trials})[0]["rho_share"] == 0.5
    assert "past s*, 15% [14%, 32%] of sr(W)" in sst2["sentence"]
    rising = supported()
    rising["thresholds"] = [
        rising["thresholds"][-1]
        | {"direction": "rises", "half_ratio": 2, "half_ratio_low": 1.5, "half_ratio_high": 3}
    ]
    places = [standing(d, None, rising)[0]["place"] for d in (0.2, 1.0, 2.5)]
    assert places == ["before", "at", "past"]


def test_several_sources_a_folder_of_checkpoints_and_ci(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for step in (100, 20):
        shutil.copytree(case.adapter, run / f"checkpoint-{step}")
    zero = zeroed(case, tmp_path / "zero", "query")
    command = ["judge", str(run), str(zero), "--base", str(case.base)]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    names = [Path(one["source"]).name for one in printed["sources"]]
    assert names == ["checkpoint-20", "checkpoint-100", "zero"]
    shutil.copytree(run / "checkpoint-20", tmp_path / "outputs" / "b" / "checkpoint-3")
    shutil.copytree(run, tmp_path / "outputs" / "a")
    (tmp_path / "outputs" / "logs").mkdir()
    whole = ["a/checkpoint-20", "a/checkpoint-100", "b/checkpoint-3"]
    assert sources([str(tmp_path / "outputs")]) == [str(tmp_path / "outputs" / n) for n in whole]
    assert {line["task"] for line in printed["sources"][0]["standing"]} == {"CoLA", "MRPC", "SST-2"}
    assert printed["against"] == "minilm-glue"
    rho = measure(case.adapter, base=case.base).summary().query("matrix == 'dW'")["rho"].median()
    assert main([*command, "--fail-if", "rho > 100"]) == 0
    out = capsys.readouterr().out
    assert "another" in out
    assert "checkpoint-20" in out
    assert main([*command, "--fail-if", f"rho >= {rho / 2}"]) == 4
    error = capsys.readouterr().err
    assert "rho >= " in error
    assert error.strip().count("\n") == 0
    met, unmet = f"rho >= {rho / 2}", "rho > 100"
    for first, second in ((met, unmet), (unmet, met)):  # none is forgotten for another
        assert main([*command, "--fail-if", first, "--fail-if", second]) == 4
        assert capsys.readouterr().err.startswith(f"rankscope: {met} holds")
    assert main([*command, "--fail-if", "rho > many"]) == 2
    assert main(["judge", str(case.base), "--base", str(tmp_path)]) == 2
