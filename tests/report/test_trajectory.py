"""A run's checkpoints by step: their order, the figure, and what cannot be drawn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rankscope.cli import main
from rankscope.measurement.judge import judge
from rankscope.report.standing import sentences, trajectories
from rankscope.report.trajectory import figure
from tiny import Case


@pytest.fixture
def run(make_case: Callable[..., Case], tmp_path: Path) -> tuple[Case, Path]:
    """checkpoint-20, -100 and -300, whose updates grow."""
    case = make_case("roberta", target_modules=["query", "value"], r=4, lora_alpha=8)
    for step in (100, 20, 300):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        shutil.copytree(case.adapter, folder)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({n: t * step / 300 if "lora_B" in n else t for n, t in tensors.items()}, file)
    return case, tmp_path / "run"


def test_steps_in_order_and_values_of_judge(run: tuple[Case, Path]) -> None:
    case, folder = run
    found = [judge(folder / f"checkpoint-{step}", base=case.base) for step in (300, 100, 20)]
    own = trajectories(found)[str(folder)]
    assert [one.step for one in own] == [20, 100, 300]
    assert own[2].rho == pytest.approx(15 * own[0].rho, rel=1e-2)
    rows = figure(found).spec["datasets"]["rows"]
    drawn = {(r["panel"], r["line"], r["step"]): r["value"] for r in rows if r["line"]}
    (ratio, rho) = dict.fromkeys(key[0] for key in drawn)
    for one in own:
        assert drawn[ratio, "median of layers", one.step] == pytest.approx(1 + one.drift, rel=1e-4)
        assert drawn[rho, "median of layers", one.step] == pytest.approx(one.rho, rel=1e-4)
    (said,) = sentences(found)
    assert f"{folder}, step 20 -> 300: drift {own[0].drift:+.1%} -> {own[2].drift:+.1%}" in said
    assert sentences(found[:1]) == []


def test_the_command_draws_svg_pdf_and_png(
    run: tuple[Case, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, folder = run
    for end, head in (("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG")):
        file = tmp_path / f"steps.{end}"
        typed = ["judge", str(folder), "--base", str(case.base), "--figure", str(file)]
        assert main(typed) == 0
        assert file.read_bytes().startswith(head)
        assert f"figure: {file}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sources", "file", "says"),
    [
        (["run"], "steps.gif", "expected a file that ends in .pdf, .svg, .png"),
        (["run"], "nowhere/steps.svg", "expected a folder that exists"),
        (["run/checkpoint-20"], "steps.svg", "found one source"),
        (["run/checkpoint-20", "other"], "steps.svg", "found checkpoint-20, other"),
    ],
)
def test_what_cannot_be_drawn(
    sources: list[str], file: str, says: str, run: tuple[Case, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    case, folder = run
    shutil.copytree(folder / "checkpoint-100", tmp_path / "other")
    paths = [str(tmp_path / name) for name in sources]
    typed = ["judge", *paths, "--base", str(case.base), "--figure", str(tmp_path / file)]
    assert main(typed) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / file).exists()
