"""How `rankscope measure` ends: its status and its one line, and that names are shown as text."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankscope.cli import main

EVIL = "a\x1b[31mred\x1b]0;title\x07\r\n=1+1"


def adapter(folder: Path, B: torch.Tensor, layer: str = "q") -> Path:
    folder.mkdir()
    names = {f"base_model.model.{layer}.lora_A.weight": torch.ones(2, 5)}
    save_file(
        names | {f"base_model.model.{layer}.lora_B.weight": B}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    )
    return folder


def ending(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["measure", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1
    return status, out, err


def test_what_is_not_finite_is_status_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = adapter(tmp_path / "a", torch.full((6, 2), torch.nan))
    for form in ("--json", "--csv"):
        status, out, err = ending(capsys, source, form)
        assert status == 3
        assert (
            "1 of 1 matrices could not be measured; the first is q, dW: B holds NaN or Inf" in err
        )
        assert "q" in out


def test_nothing_to_suggest_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ending(capsys, adapter(tmp_path / "a", torch.zeros(6, 2)), "--suggest", 95)
    assert (status, out) == (2, "")
    assert "expected an update dW to suggest ranks for; found 1 that are zero" in err
    save_file({"x.weight": torch.ones(3, 4)}, tmp_path / "x.safetensors")
    status, out, err = ending(capsys, tmp_path / "x.safetensors", "--suggest", 95)
    assert (status, out) == (2, "")
    assert "found none" in err
    assert ending(capsys, adapter(tmp_path / "b", torch.zeros(6, 2)))[0] == 0


@pytest.mark.parametrize("arguments", [("--layers", "z"), ("--alpha", "-3"), ("--layers", "(")])
def test_mistakes_are_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    status, out, err = ending(capsys, adapter(tmp_path / "a", torch.ones(6, 2)), *arguments)
    assert (status, out) == (2, "")
    assert "expected" in err


def test_a_text_file_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "model.bin", "x.npz", "x.safetensors", "x.json"):
        (tmp_path / name).write_text("hello\nworld")
        status, out, err = ending(capsys, tmp_path / name)
        assert (status, out) == (2, "")
        assert name in err


@pytest.mark.parametrize("form", [(), ("--csv",), ("--json",)])
def test_names_are_shown_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: tuple[str, ...]
) -> None:
    torch.save({f"{EVIL}.weight": torch.eye(4), f"{EVIL}.bias": torch.ones(3)}, tmp_path / "x.bin")
    status, out, _ = ending(capsys, tmp_path / "x.bin", *form)
    assert status == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "red" in out
    if form == ("--csv",):
        (row,) = csv.DictReader(io.StringIO(out))
        assert row["layer"] == "a\\x1b[31mred\\x1b]0;title\\x07\\r\\n=1+1"


def test_a_long_table_says_how_much_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({f"l.{i}.weight": torch.ones(1, 1) for i in range(2010)}, tmp_path / "x.safetensors")
    status, out, _ = ending(capsys, tmp_path / "x.safetensors")
    assert status == 0
    assert "10 more rows: type --json" in out
    assert "l.1999 " in out
    assert "l.2000 " not in out


def test_bounds_wider_than_asked_are_status_3_and_name_certify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    save_file({"x.weight": torch.randn(300, 300, generator=generator)}, tmp_path / "x.safetensors")
    status, _, err = ending(capsys, tmp_path / "x.safetensors", "--rtol", 1e-15)
    assert status == 3
    assert "1 of 1 bounds are wider than rtol = 1e-15; the first is x, W:" in err
    assert "Type --certify" in err
    status, out, err = ending(capsys, tmp_path / "x.safetensors", "--rtol", 1e-15, "--certify")
    assert status == 3
    assert "Type a larger --rtol" in err
    assert "--certify" not in out + err
