"""How much a worker may pack, from bytes that are given: no GPU needed."""

from __future__ import annotations

import pytest

from rankscope.store.store import Store
from rankscope.study.cost import base_memory, memory, widths
from rankscope.study.study_file import Study, Trial
from rankscope.sweep import machine
from rankscope.sweep import plan as forecast
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.machine import PACK_SIZE, SHARE, Room, free_for_each, room
from rankscope.sweep.plan import forecast as planned

GB = 1e9


@pytest.fixture(scope="module")
def lab() -> StudyInputs:
    return StudyInputs(Study.load("lab"))


@pytest.fixture(scope="module")
def store(lab: StudyInputs, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store")
    return Store.create(path, lab.study, largest_rank=lab.largest_rank, fingerprints=lab.fingerprints)


def needed(pack: list[Trial], inputs: StudyInputs, device: str = "cpu") -> float:
    held = (inputs.shape(pack[0]), inputs.rows(pack[0]), widths(pack[0], device))
    return base_memory(pack[0], *held) + sum(memory(trial, *held) for trial in pack)


def test_the_most() -> None:
    assert room("cpu", free=64 * GB, trials=500, workers=2) == Room(PACK_SIZE, SHARE * 64 * GB)
    assert room("cuda", free=64 * GB, trials=500, workers=2).most == 250  # every worker gets a pack
    assert room("cuda", free=64 * GB, trials=4, workers=8).most == PACK_SIZE


def test_workers_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_available", lambda: 17 * GB)
    monkeypatch.setattr(machine, "_left_by_cgroup", lambda: float("inf"))
    assert [free_for_each(workers) for workers in (1, 2, 4)] == [17 * GB, 8 * GB, 4 * GB]
    monkeypatch.setattr(machine, "_left_by_cgroup", lambda: 0.5 * GB)
    assert free_for_each(2) == 0.25 * GB


def test_packs_fit_the_memory(lab: StudyInputs, store: Store) -> None:
    free = {}
    for megabytes in (1000, 40, 8):
        inputs = StudyInputs(lab.study, free=megabytes * 1e6)
        packs = inputs.packs(store)
        assert sorted(t.id for pack in packs for t in pack) == sorted(t.id for t in inputs.trials)
        held = [needed(pack, inputs) for pack in packs if len(pack) > 1]
        assert all(bytes_ <= SHARE * megabytes * 1e6 for bytes_ in held)
        free[megabytes] = max(len(pack) for pack in packs)
    assert free == {1000: PACK_SIZE, 40: pytest.approx(5, abs=2), 8: 1}


def test_a_plan_counts_the_packs_that_are_trained(lab: StudyInputs, store: Store) -> None:
    for megabytes in (1000, 40):
        inputs = StudyInputs(lab.study, free=megabytes * 1e6)
        assert f" {len(inputs.packs(store))} packs" in planned(inputs, None)


def test_a_plan_for_a_gpu_packs_all_that_fit(lab: StudyInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    small = forecast.device_named("t4")
    full = sum(trial.method == "full" for trial in lab.trials)
    assert f" {full + 3} packs" in planned(lab, None, device="t4")  # one for each task
    monkeypatch.setattr(forecast, "device_named", lambda _: type(small)("T4", 30e6, small.peak))
    assert f" {full + 3} packs" not in planned(lab, None, device="t4")
    monkeypatch.setattr(forecast, "device_named", lambda _: type(small)("T4", 5e6, small.peak))
    assert "Take fewer workers, a smaller batch_size" in planned(lab, None, device="t4")


def test_a_plan_for_a_gpu_counts_the_starts_of_kernels(lab: StudyInputs) -> None:
    """Small steps leave a GPU waiting: that many full fine-tunes, one at a time, are not free."""
    steps = {trial.task: lab.steps(trial) for trial in lab.trials}
    full = [trial for trial in lab.trials if trial.method == "full"]
    packed = [steps[trial.task] for trial in full] + list(steps.values())  # and a pack of each task
    hours = sum(packed) * lab.shape(full[0]).layers * 2e-3 / 3600
    assert f" {hours:.3g} GPU-hours" in planned(lab, None, device="h200")
    assert "2 ms a block and step" in planned(lab, None, device="h200")


def test_a_gpu_that_is_here_counts_them_too(lab: StudyInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast.torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(forecast, "matrix_rate", lambda device: 1e12)
    rate, source, floor = forecast._rate([], None, forecast.torch.device("cuda"), None, 2)
    assert (rate, floor) == (2 * 0.35e12, 2e-3)
    assert source.endswith("measured now, and 2 ms a block and step")
