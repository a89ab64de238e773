"""Sharded models, on two gloo processes: the values of the same model whole, and no process waits
in vain."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from measurement.sharded import CASES, plain, trained
from measurement.two_processes import run_both
from tiny import stable_rank


@pytest.mark.slow
def test_a_sharded_model_is_measured_as_if_it_were_whole(tmp_path: Path) -> None:
    first, second = run_both("sharded.py", tmp_path)
    assert list(first) == list(second) == [f"{wrapping} {kind}" for wrapping, kind in CASES]
    for wrapping, kind in CASES:
        as_whole(kind, first[f"{wrapping} {kind}"], second[f"{wrapping} {kind}"])
        if wrapping != "ddp":
            said = first[f"{wrapping} {kind}"]["alone"]
            assert "sharded over 2 processes, which all have to call probe" in said


def as_whole(kind: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    """What the two processes found is what the model has that was never sharded."""
    for layer, expected in dense_matrices(kind).items():
        for found in (first, second):
            rows = {row["matrix"]: row for row in found["rows"] if row["layer"] == layer}
            assert set(rows) == set(expected)
            for matrix, dense in expected.items():
                assert rows[matrix]["stable_rank"] == pytest.approx(stable_rank(dense), rel=1e-5)
                assert rows[matrix]["frobenius_norm"] == pytest.approx(
                    float(dense.norm()), rel=1e-5
                )
        logs = first["logs"]
        for word, matrix in (("dW", "dW"), ("W_plus_dW", "W+dW")):
            true = stable_rank(expected[matrix])
            assert logs[f"stable_rank/{word}/{layer}"] == pytest.approx(true, rel=1e-5)
        norm = {
            matrix: float(torch.linalg.matrix_norm(dense, 2)) for matrix, dense in expected.items()
        }
        assert logs[f"stable_rank/rho/{layer}"] == pytest.approx(norm["dW"] / norm["W"], rel=1e-5)
    assert second["logs"] == {"loss": 1.0}
    for found in (first, second):
        assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-5)
        assert found["together"] == 6


def dense_matrices(kind: str) -> dict[str, dict[str, Tensor]]:
    """Layer -> W, dW and W + dW in float64, the update as PEFT merges it."""
    model = plain(kind)
    before = dict(model.state_dict())
    before = {name: tensor.double().clone() for name, tensor in before.items()}
    trained(model)
    if kind != "full":
        before = {name.replace(".base_layer", ""): tensor for name, tensor in before.items()}
        model = model.double().merge_and_unload()
    after = {name: tensor.double() for name, tensor in model.state_dict().items()}
    found = {}
    for i, part in itertools.product((0, 1), ("query", "value")):
        layer = f"roberta.encoder.layer.{i}.attention.self.{part}"
        prefix = "" if kind == "full" else "base_model.model."
        W, tuned = before[f"{prefix}{layer}.weight"], after[f"{layer}.weight"]
        found[layer] = {"W": W, "dW": tuned - W, "W+dW": tuned}
    return found
