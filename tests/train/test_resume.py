"""A pack that is stopped goes on where it was; one that is too large for the memory is split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rankscope.study.folder import TrialFolder
from rankscope.train import checkpoint, loop
from rankscope.train.data import Encoded
from rankscope.train.loop import train_pack
from rankscope.train.run import Run
from training import CPU, TASK, encoded, trials_of

STEPS = 12


class Stopped(BaseException):
    """As a lost lease or a kill."""


@pytest.fixture(scope="module")
def train(tiny_models: dict[str, str], tiny_data: Path) -> Encoded:
    return encoded(tiny_models["roberta"], tiny_data)


def folders_in(root: Path, count: int) -> list[TrialFolder]:
    folders = [TrialFolder(root / str(k)) for k in range(count)]
    for folder in folders:
        folder.path.mkdir(parents=True)
    return folders


def trained(
    method: str, model: str, train: Encoded, root: Path, *, stop_after: int | None = None, scratch: Path | None = None,
) -> tuple[list[TrialFolder], int]:  # fmt: skip
    """-> folders, steps told of"""
    trials = trials_of("roberta", model, method=method, ranks="[1, 3]", d=16, steps=STEPS)
    folders, told = folders_in(root, len(trials)), 0

    def progress(steps: int) -> None:
        nonlocal told
        told += steps
        if stop_after is not None and told >= stop_after * len(trials):
            raise Stopped

    train_pack(
        trials, folders, progress, model=model, task=TASK, train=train, validation=train, device=CPU, scratch=scratch
    )  # fmt: skip
    return folders, told


def assert_same_results(one: list[TrialFolder], other: list[TrialFolder]) -> None:
    for a, b in zip(one, other, strict=True):
        results = [{k: v for k, v in folder.result().items() if k != "seconds"} for folder in (a, b)]
        assert results[0] == results[1]
        assert a.metrics() == b.metrics()
        assert (a.path / "spectra.parquet").read_bytes() == (b.path / "spectra.parquet").read_bytes()
        for which in ("best", "last"):
            files = [next((folder.path / which).glob("*.safetensors")) for folder in (a, b)]
            left, right = map(load_file, files)
            assert left.keys() == right.keys()
            assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_pack_equals_an_undisturbed_one(
    method: str, tiny_models: dict[str, str], train: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, scratch = tiny_models["roberta"], tmp_path / "scratch"
    undisturbed, told = trained(method, model, train, tmp_path / "undisturbed")
    monkeypatch.setattr(loop, "_EVERY", 0.0)
    monkeypatch.setattr(loop, "_SHARE", 1e9)
    with pytest.raises(Stopped):
        trained(method, model, train, tmp_path / "stopped", stop_after=7, scratch=scratch)
    assert [path.name for path in scratch.iterdir()] == ["checkpoint.safetensors"]
    taken: list[int] = []
    real = Run.step
    monkeypatch.setattr(Run, "step", lambda self, rows, step: taken.append(step) or real(self, rows, step))
    resumed, again = trained(method, model, train, tmp_path / "resumed", scratch=scratch)
    assert taken == list(range(8, STEPS + 1))
    assert again == told
    assert_same_results(resumed, undisturbed)


@pytest.mark.parametrize("damage", ["cut", "other", "not"])
def test_a_checkpoint_that_is_not_this_packs_is_ignored(damage: str, tmp_path: Path) -> None:
    checkpoint.write(tmp_path, {"x": torch.ones(3)}, {"trials": ["a", "b"], "done": 3})
    found = checkpoint.read(tmp_path, trials=["a", "b"])
    assert found is not None
    assert torch.equal(found[0]["x"], torch.ones(3))
    assert found[1]["done"] == 3
    path = tmp_path / checkpoint.NAME
    path.write_bytes({"cut": path.read_bytes()[:50], "other": b"", "not": b"\x00" * 200}[damage])
    assert checkpoint.read(tmp_path, trials=["a", "b"]) is None
    checkpoint.write(tmp_path, {"x": torch.ones(3)}, {"trials": ["a", "b"]})
    assert checkpoint.read(tmp_path, trials=["b", "a"]) is None
    assert checkpoint.read(tmp_path / "absent", trials=["a"]) is None
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == json.dumps([checkpoint.NAME])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_a_pack_that_does_not_fit_is_split_and_equals_one_that_does(
    error: Exception,
    tiny_models: dict[str, str],
    train: Encoded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_models["roberta"]
    whole, told = trained("lora", model, train, tmp_path / "whole")
    sizes: list[int] = []
    real = Run.step

    def step(self: Run, rows: torch.Tensor, step: int) -> torch.Tensor:
        sizes.append(self.K)
        if self.K > 2 and step == 4:
            raise error
        return real(self, rows, step)

    monkeypatch.setattr(Run, "step", step)
    split, again = trained("lora", model, train, tmp_path / "split", scratch=tmp_path / "scratch")
    assert set(sizes) == {6, 3, 1, 2}
    assert again == told
    for a, b in zip(whole, split, strict=True):
        assert a.result()["steps"] == b.result()["steps"] == STEPS
        assert a.result()["best"] == pytest.approx(b.result()["best"], abs=1e-6)
        left, right = (load_file(f.path / "last" / "adapter_model.safetensors") for f in (a, b))
        for name, value in left.items():
            torch.testing.assert_close(right[name], value, rtol=0, atol=1e-4)


def test_other_errors_and_a_single_trial_that_does_not_fit_pass(
    tiny_models: dict[str, str], train: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Run, rows: torch.Tensor, step: int) -> torch.Tensor:
        raise torch.OutOfMemoryError if self.K == 1 else RuntimeError("something else")

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(RuntimeError, match="something else"):
        trained("lora", tiny_models["roberta"], train, tmp_path / "lora")
    with pytest.raises(torch.OutOfMemoryError):
        trained("full", tiny_models["roberta"], train, tmp_path / "full")
