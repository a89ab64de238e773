"""How much a worker may pack, from bytes that are given: no GPU needed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from pathlib import Path
from typing import Any

import pytest

from rankscope.store.store import Store
from rankscope.study.cost import base_memory, device_named, memory, widths
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.machine import (
    PACK_SIZE,
    SHARE,
    Room,
    free_for_each,
    left_by_cgroup,
    room,
    shared,
    workers_with_room,
)
from rankscope.sweep.plan import forecast
from rankscope.sweep.run import chosen_workers
from rankscope.sweep.speed import fastest, speed, speed_here

GB = 1e9


def test_memory_that_others_hold() -> None:
    """9 GB are free, and a worker needs 2.4 GB and its program's 0.6: three fit, not four."""
    count, line = workers_with_room(4, 2.4 * GB, free=9 * GB)
    assert (count, line) == (
        3,
        "9 GB of memory are free, and a worker of this study needs about 3 GB: there is room for "
        "3.0 of 4",
    )
    assert workers_with_room(3, 2.4 * GB, free=9 * GB) == (3, None)
    count, line = workers_with_room(2, 2.4 * GB, free=1.5 * GB)
    assert count == 1
    assert line is not None
    assert line.endswith("room for 0.5 of 2")


def test_a_run_takes_the_workers_that_fit(
    lab: StudyInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    """The largest pack decides; what a user asks for is done, and said."""
    packs = [lab.trials[:1], lab.trials[:8]]
    assert lab.memory(packs[0]) < lab.memory(packs[1])
    huge: Any = types.SimpleNamespace(memory=lambda pack: len(pack) ** 5 * GB)  # 32 TB for eight
    assert chosen_workers(huge, None, packs) == 1
    said = capsys.readouterr().err
    assert re.search(r"room for 0\.0 of \d+; taking 1; --workers N decides otherwise", said)
    assert chosen_workers(huge, 2, packs) == 2
    assert "room for 0.0 of 2; 2, as asked" in capsys.readouterr().err
    assert chosen_workers(lab, None, packs[:1]) == 1  # no more than packs, and not a word
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def lab() -> StudyInputs:
    return StudyInputs(Study.load("lab"))


@pytest.fixture(scope="module")
def store(lab: StudyInputs, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store")
    return Store.create(
        path, lab.study, largest_rank=lab.largest_rank, fingerprints=lab.fingerprints
    )


def needed(pack: list[Trial], inputs: StudyInputs, device: str = "cpu") -> float:
    held = (inputs.shape(pack[0]), inputs.rows(pack[0]), widths(pack[0], device))
    return base_memory(pack[0], *held) + sum(memory(trial, *held) for trial in pack)


def test_the_most() -> None:
    assert room("cpu", free=64 * GB, trials=500, workers=2) == Room(PACK_SIZE, SHARE * 64 * GB)
    assert room("cuda", free=64 * GB, trials=500, workers=2).most == 250  # every worker gets a pack
    assert room("cuda", free=64 * GB, trials=4, workers=8).most == PACK_SIZE


def test_workers_share_what_is_free() -> None:
    assert [shared(17.9 * GB, workers) for workers in (1, 2, 4)] == [17 * GB, 8 * GB, 4 * GB]
    assert shared(0.5 * GB, 2) == 0.25 * GB
    assert 0 < free_for_each(2) <= free_for_each(1)


def test_a_container_has_its_own_limit(tmp_path: Path) -> None:
    assert left_by_cgroup(tmp_path) == math.inf
    (tmp_path / "memory.current").write_text("3000000000\n")
    for limit, left in (("max\n", math.inf), ("8000000000\n", 5 * GB)):
        (tmp_path / "memory.max").write_text(limit)
        assert left_by_cgroup(tmp_path) == left


def test_packs_fit_the_memory(lab: StudyInputs, store: Store) -> None:
    free = {}
    for megabytes in (1000, 40, 8):
        inputs = StudyInputs(lab.study, free=megabytes * 1e6)
        packs = inputs.packs(store)
        assert sorted(t.id for pack in packs for t in pack) == sorted(t.id for t in inputs.trials)
        held = [needed(pack, inputs) for pack in packs if len(pack) > 1]
        assert all(bytes_ <= SHARE * megabytes * 1e6 for bytes_ in held)
        free[megabytes] = max(len(pack) for pack in packs)
    assert free == {1000: 8, 40: pytest.approx(5, abs=2), 8: 1}


def test_a_plan_counts_the_packs_that_are_trained(lab: StudyInputs, store: Store) -> None:
    for megabytes in (1000, 40):
        inputs = StudyInputs(lab.study, free=megabytes * 1e6)
        assert f" {len(inputs.packs(store))} packs" in forecast(inputs, None)


def test_a_plan_names_the_settings_that_are_compared(lab: StudyInputs) -> None:
    assert "settings compared" not in forecast(lab, None)
    scientific = lab.study.scientific.model_copy(update={"init_lora_weights": [True, "olora"]})
    both = StudyInputs(lab.study.model_copy(update={"scientific": scientific}))
    count = sum(trial.method == "lora" for trial in lab.trials)
    said = f"settings compared (trials): default ({count}); init_lora_weights=olora ({count})"
    assert said in forecast(both, None)
    share, costs = both.share(1e9, "cpu"), {}
    for trial in (t for t in both.trials if t.method == "lora" and t.rank == 128):
        costs[trial.init_lora_weights] = (share(trial), both.cost(trial))
    assert all(a < b for a, b in zip(costs[True], costs["olora"], strict=True))


def test_a_plan_for_a_gpu_packs_all_that_fit(lab: StudyInputs) -> None:
    t4 = device_named("t4")
    full = sum(trial.method == "full" for trial in lab.trials)
    assert f" {full + 6} packs" in forecast(lab, None, device="t4")  # one a task and seed
    small, tiny = (dataclasses.replace(t4, memory=bytes_) for bytes_ in (30e6, 5e6))
    assert f" {full + 6} packs" not in forecast(lab, None, device=small)
    assert "Take fewer workers, a smaller batch_size" in forecast(lab, None, device=tiny)


def test_a_plan_for_a_gpu_counts_the_starts_of_kernels(lab: StudyInputs) -> None:
    """Small steps leave a GPU waiting: that many full fine-tunes, one at a time, are not free."""
    steps = {trial.task: lab.steps(trial) for trial in lab.trials}
    full = [trial for trial in lab.trials if trial.method == "full"]
    packed = [steps[trial.task] for trial in full] + 2 * list(
        steps.values()
    )  # a pack a task and seed
    hours = sum(packed) * lab.shape(full[0]).layers * 2e-3 / 3600
    assert f" {hours:.3g} GPU-hours" in forecast(lab, None, device="h200")
    assert "2 ms a block and step" in forecast(lab, None, device="h200")


def test_a_gpu_that_is_here_counts_them_too() -> None:
    rate, source, floor = speed_here(1e12, "", "cuda", 2)
    assert (rate, floor) == (2 * 0.35e12, 2e-3)
    assert source.endswith("measured here, and 2 ms a block and step")
    rate, source, floor = speed_here(1e12, "; busy", "cpu", 2)  # which the two share
    assert (rate, floor) == (0.35e12, 0)
    assert source.endswith("measured here; busy")


def test_a_rate_of_a_busy_machine_is_measured_again(tmp_path: Path) -> None:
    """The fastest counts; one of an idle machine is kept for good, one of a busy one until then."""
    kept = tmp_path / "speed.json"
    #        busy, what would be measured
    looks = ((True, 1e9), (True, 9e9), (False, 3e9), (False, 9e9), (True, 9e9))
    found = [fastest(kept, lambda rate=rate: rate, busy=busy) for busy, rate in looks]
    assert found == [1e9, 1e9, 3e9, 3e9, 3e9]
    kept.write_text("{")  # disposable
    assert fastest(kept, lambda: 9e9, busy=True) == 9e9


def test_a_plan_measures_this_machine_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path))
    found = speed([], None, "cpu", None, 2)
    (kept,) = (tmp_path / "speed").glob("*.json")
    assert found.rate == pytest.approx(0.35 * json.loads(kept.read_text())["rate"])
    assert found.source.startswith("35% of ")
