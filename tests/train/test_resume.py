"""A pack that is stopped goes on where it was; one that is too large for the memory is split."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankscope.store.trial_dir import TrialDir
from rankscope.train import checkpoint, loop
from rankscope.train.data import Encoded
from rankscope.train.loop import Pace, train_pack
from rankscope.train.packed import NotIsolated
from rankscope.train.run import Run
from rankscope.train.without_diverged import without_diverged
from training import CPU, TASK, encoded, losses_of, run_of, trials_of

STEPS = 12


class Stopped(BaseException):
    """As a lost lease or a kill."""


@pytest.fixture(scope="module")
def train(tiny_models: dict[str, str], tiny_data: Path) -> Encoded:
    return encoded(tiny_models["roberta"], tiny_data)


def folders_in(root: Path, count: int) -> list[TrialDir]:
    folders = [TrialDir(root / str(k)) for k in range(count)]
    for folder in folders:
        folder.path.mkdir(parents=True)
    return folders


ALWAYS = Pace(every=0.0, share=1e9)  # a checkpoint after every step


def trained(
    method: str,
    model: str,
    train: Encoded,
    root: Path,
    *,
    stop_after: int | None = None,
    **settings: Any,
) -> tuple[list[TrialDir], int]:
    """-> folders, steps told of"""
    trials = trials_of("roberta", model, method=method, ranks="[1, 3]", d=16, steps=STEPS)
    folders, told = folders_in(root, len(trials)), 0

    def progress(steps: int) -> None:
        nonlocal told
        told += steps
        if stop_after is not None and told >= stop_after * len(trials):
            raise Stopped

    held = {"model": model, "task": TASK, "train": train, "validation": train, "device": CPU}
    train_pack(trials, folders, progress, **held, **settings)
    return folders, told


def watched(*, poison: int | None = None) -> tuple[type[Run], list[int], list[int]]:
    """A Run, the steps that it takes, and the trials in each step's pack.

    After the step ``poison`` the second trial and the last one turn NaN.
    """
    taken: list[int] = []
    sizes: list[int] = []

    class Watched(Run):
        def step(self, rows: torch.Tensor, step: int) -> torch.Tensor:
            taken.append(step)
            sizes.append(self.K)
            losses = super().step(rows, step)
            if step == poison and self.K > 1:
                with torch.no_grad():
                    self.pack.params[0].values[[1, self.K - 1]] = torch.nan
            return losses

    return Watched, taken, sizes


def assert_same_results(one: list[TrialDir], other: list[TrialDir]) -> None:
    for a, b in zip(one, other, strict=True):
        results = [
            {k: v for k, v in folder.result().items() if k != "seconds"} for folder in (a, b)
        ]
        assert results[0] == results[1]
        assert a.metrics() == b.metrics()
        assert (a.path / "spectra.parquet").read_bytes() == (
            b.path / "spectra.parquet"
        ).read_bytes()
        for which in ("best", "last"):
            files = [next((folder.path / which).glob("*.safetensors")) for folder in (a, b)]
            left, right = map(load_file, files)
            assert left.keys() == right.keys()
            for name in left:
                torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_pack_equals_an_undisturbed_one(
    method: str, tiny_models: dict[str, str], train: Encoded, tmp_path: Path
) -> None:
    model, scratch = tiny_models["roberta"], tmp_path / "scratch"
    undisturbed, told = trained(method, model, train, tmp_path / "undisturbed")
    with pytest.raises(Stopped):
        trained(
            method, model, train, tmp_path / "stopped", stop_after=7, scratch=scratch, pace=ALWAYS
        )
    assert [path.name for path in scratch.iterdir()] == ["checkpoint.safetensors"]
    run, taken, _ = watched()
    resumed, again = trained(method, model, train, tmp_path / "resumed", scratch=scratch, run=run)
    assert taken == list(range(8, STEPS + 1))
    assert again == told
    assert_same_results(resumed, undisturbed)


@pytest.mark.parametrize("holds", [True, False])
def test_what_is_left_of_a_pack_is_proved_again(
    holds: bool,
    tiny_models: dict[str, str],
    train: Encoded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And where it is not isolated any more, all its trials begin again, one at a time."""
    proved: list[int] = []

    def prove(pack: Any, *rest: Any) -> None:
        proved.append(len(pack.trials))
        if len(pack.trials) < 6 and not holds:
            raise NotIsolated("four meet each other")

    monkeypatch.setattr(loop, "prove", prove)
    run, _, sizes = watched(poison=3)
    found, told = trained(
        "lora", tiny_models["roberta"], train, tmp_path, run=run, pace=Pace(look=4)
    )
    assert proved == [6, 4]
    assert told == 6 * STEPS
    assert sizes == [6] * 4 + ([4] * (STEPS - 4) if holds else sizes[4:])
    assert holds or set(sizes[4:]) == {1}
    lost = [k for k, folder in enumerate(found) if folder.result()["status"] == "diverged"]
    assert lost == ([1, 5] if holds else [])
    if not holds:
        said = [json.loads((folder.path / "trial.json").read_text()) for folder in found]
        assert {one["one_at_a_time"] for one in said} == {"four meet each other"}


def test_a_pack_goes_on_without_its_dead(
    tiny_models: dict[str, str], train: Encoded, tmp_path: Path
) -> None:
    """The living change by rounding only, since products of fewer rows may add in another order:
    1e-6 in float32."""
    model = tiny_models["roberta"]
    undisturbed, told = trained("lora", model, train, tmp_path / "undisturbed")
    run, _, sizes = watched(poison=3)
    frozen, _ = trained("lora", model, train, tmp_path / "frozen", run=run)
    assert sizes == [6] * STEPS
    sizes.clear()
    dropped, again = trained("lora", model, train, tmp_path / "dropped", run=run, pace=Pace(look=4))
    assert sizes == [6] * 4 + [4] * (STEPS - 4)
    assert again == told
    for k in (1, 5):
        assert dropped[k].result()["status"] == "diverged"
    assert_same_results([dropped[k] for k in (1, 5)], [frozen[k] for k in (1, 5)])
    for k in (0, 2, 3, 4):
        a, b = dropped[k], undisturbed[k]
        assert a.result() == pytest.approx(
            b.result() | {"seconds": a.result()["seconds"]}, abs=1e-6
        )
        for which in ("best", "last"):
            left, right = (load_file(f.path / which / "adapter_model.safetensors") for f in (a, b))
            assert left.keys() == right.keys()
            for name, value in left.items():
                torch.testing.assert_close(right[name], value, rtol=0, atol=1e-6)
        pd.testing.assert_frame_equal(
            *(pd.read_parquet(folder.path / "spectra.parquet") for folder in (a, b)), rtol=1e-3
        )


def test_the_living_equal_themselves_in_float64(
    tiny_models: dict[str, str], train: Encoded
) -> None:
    """With the largest rank the padding of the others goes, too."""
    model = tiny_models["roberta"]
    trials = trials_of("roberta", model, ranks="[1, 3, 8, 16]", d=16, steps=STEPS)
    whole = run_of(trials, model, train, torch.float64)
    expected = losses_of(whole)
    run = run_of(trials, model, train, torch.float64)
    head = losses_of(run, stop=5)
    kept = [0, 2, 3, 5, 6]
    run.alive[:] = torch.isin(torch.arange(len(trials)), torch.tensor(kept))
    small = without_diverged(run)
    assert max(t.rank or 0 for t in small.pack.trials) < max(t.rank or 0 for t in trials)
    found = torch.cat([head[:, kept], losses_of(small)])
    torch.testing.assert_close(found, expected[:, kept], rtol=0, atol=1e-12)


def test_a_kill_after_a_death_loses_nothing(
    tiny_models: dict[str, str], train: Encoded, tmp_path: Path
) -> None:
    model, scratch = tiny_models["roberta"], tmp_path / "scratch"
    run, _, sizes = watched(poison=3)
    settings: dict[str, Any] = {"run": run, "pace": dataclasses.replace(ALWAYS, look=4)}
    undisturbed, told = trained("lora", model, train, tmp_path / "undisturbed", **settings)
    sizes.clear()
    settings["scratch"] = scratch
    with pytest.raises(Stopped):
        trained("lora", model, train, tmp_path / "stopped", stop_after=7, **settings)
    resumed, again = trained("lora", model, train, tmp_path / "resumed", **settings)
    assert sizes == [6] * 4 + [4] * (STEPS - 4)
    assert again == told
    assert_same_results(resumed, undisturbed)
    next((scratch / "diverged").glob("*/done.json")).unlink()  # then it begins again
    again_from_the_start, _ = trained("lora", model, train, tmp_path / "again", **settings)
    assert_same_results(again_from_the_start, undisturbed)


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
    state = {"state": json.dumps({"trials": ["a", "b"]})}  # before formats had numbers
    save_file({"x": torch.ones(3)}, tmp_path / checkpoint.NAME, metadata=state)
    assert checkpoint.read(tmp_path, trials=["a", "b"]) is None
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == json.dumps([checkpoint.NAME])


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_none(tmp_path: Path) -> None:
    """By a worker that was taken for dead and woke up."""

    class Replaced(list[str]):
        def __ne__(self, other: object) -> bool:  # asked between the header and the tensors
            checkpoint.write(tmp_path, {"x": torch.ones(3)}, {"trials": ["a"], "done": 2})
            return False

    checkpoint.write(tmp_path, {"x": torch.zeros(3)}, {"trials": ["a"], "done": 1})
    whole = checkpoint.read(tmp_path, trials=["a"])
    assert whole is not None
    assert whole[1]["done"] == 1
    assert whole[0]["x"].tolist() == [0, 0, 0]
    assert checkpoint.read(tmp_path, trials=Replaced(["a"])) is None
    new = checkpoint.read(tmp_path, trials=["a"])
    assert new is not None
    assert new[1]["done"] == 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_a_pack_that_does_not_fit_is_split_and_equals_one_that_does(
    error: Exception,
    tiny_models: dict[str, str],
    train: Encoded,
    tmp_path: Path,
) -> None:
    model = tiny_models["roberta"]
    whole, told = trained("lora", model, train, tmp_path / "whole")
    sizes: list[int] = []

    class Large(Run):
        def step(self, rows: torch.Tensor, step: int) -> torch.Tensor:
            sizes.append(self.K)
            if self.K > 2 and step == 4:
                raise error
            return super().step(rows, step)

    split, again = trained(
        "lora", model, train, tmp_path / "split", scratch=tmp_path / "scratch", run=Large
    )
    assert set(sizes) == {6, 3, 1, 2}
    assert again == told
    for a, b in zip(whole, split, strict=True):
        assert a.result()["steps"] == b.result()["steps"] == STEPS
        assert a.result()["best"] == pytest.approx(b.result()["best"], abs=1e-6)
        left, right = (load_file(f.path / "last" / "adapter_model.safetensors") for f in (a, b))
        for name, value in left.items():
            torch.testing.assert_close(right[name], value, rtol=0, atol=1e-4)


def test_other_errors_and_a_single_trial_that_does_not_fit_pass(
    tiny_models: dict[str, str], train: Encoded, tmp_path: Path
) -> None:
    class Broken(Run):
        def step(self, rows: torch.Tensor, step: int) -> torch.Tensor:
            raise torch.OutOfMemoryError if self.K == 1 else RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        trained("lora", tiny_models["roberta"], train, tmp_path / "lora", run=Broken)
    with pytest.raises(torch.OutOfMemoryError):
        trained("full", tiny_models["roberta"], train, tmp_path / "full", run=Broken)


def test_seconds_of_the_trials_of_a_pack_add_up_to_its_own(
    tiny_models: dict[str, str], train: Encoded, tmp_path: Path
) -> None:
    began = time.perf_counter()
    folders, _ = trained("lora", tiny_models["roberta"], train, tmp_path)
    spent = time.perf_counter() - began
    seconds = [folder.result()["seconds"] for folder in folders]
    assert len(seconds) == 6
    assert 0 < sum(seconds) <= spent
