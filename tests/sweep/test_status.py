"""What `rankscope status` says of a store that others are writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretend import STUDY, create, pretend
from rankscope.report.from_store import analyze, write_report
from rankscope.store.files import dumps
from rankscope.store.lease import WorkerLock, beat
from rankscope.store.trial_dir import unlike_versions
from rankscope.study.study_file import Study
from rankscope.sweep.run import provenance
from rankscope.sweep.status import Meter, status
from rankscope.sweep.worker import Worker

LIBRARIES = ("torch", "transformers", "peft")
ELSEWHERE = {"host": "elsewhere", "boot": "another"}


def test_what_is_left_is_told_by_its_cost(tmp_path: Path) -> None:
    """Two cheap trials are done (10 steps each at 1), two dear ones run (4 steps so far, at 6 and
    2), four of cost 1 are left: 20 of 140 and then 16 more."""
    store = create(tmp_path / "s")
    first, second, *_ = store.packs(size=2)
    steps = {t.id: 10 for t in store.planned()}
    costs = dict.fromkeys(steps, 1.0) | {second[0].id: 6.0, second[1].id: 2.0}
    told: list[float] = []
    meter = Meter(store, steps, costs, told.append)
    assert sum(steps[id] * costs[id] for id in steps) == 140
    Worker(store, [first], pretend, retries=0, provenance={}).run()
    assert meter.read()
    number = store.log.claim([t.id for t in second], worker="x", **ELSEWHERE)
    assert number is not None
    store.storage.write(beat(number), dumps({"count": 1, "steps": 4}))
    assert meter.read()
    assert told == [20.0, 16.0]
    assert not meter.read()


def test_the_time_left_is_shared_by_the_workers_that_live(tmp_path: Path) -> None:
    """Each trial took 0.1 s. Six are left: two workers elsewhere hold one each, and one
    here that has died a third."""
    store = create(tmp_path / "s")
    first, *others = store.packs(size=2)
    Worker(store, [first], pretend, retries=0, provenance={}).run()
    left = [trial.id for pack in others for trial in pack]
    store.log.claim(left[:1], worker="x", **ELSEWHERE)
    now = status(store)
    assert (now.done, now.running) == (2, 1)
    assert now.seconds_left == pytest.approx(0.6)
    store.log.claim(left[1:2], worker="y", **ELSEWHERE)
    dead = WorkerLock()
    store.log.claim(left[2:3], worker=dead.worker, host=dead.host, boot=dead.boot)
    dead.leave(holding=True)
    now = status(store)
    assert (now.running, [pack.interrupted for pack in now.packs]) == (2, [False, False, True])
    assert now.seconds_left == pytest.approx(0.3)


def test_the_settings_that_a_study_compares_are_told(tmp_path: Path) -> None:
    assert "settings" not in status(create(tmp_path / "one")).text()
    scientific = STUDY.scientific.model_copy(update={"use_dora": [False, True]})
    study: Study = STUDY.model_copy(update={"scientific": scientific})
    store = create(tmp_path / "two", study)
    pack = next(p for p in store.packs(size=2) if p[0].use_dora)
    Worker(store, [pack], pretend, retries=0, provenance={}).run()
    lora = sum(trial.method == "lora" for trial in store.planned()) // 2
    assert f"trials done): default (0 of {lora}); use_dora=true ({len(pack)} of {lora})" in (
        status(store).text()
    )


def test_trials_of_unlike_versions_are_named_by_status_and_analysis(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    assert list(provenance()["versions"]) == ["rankscope", "code", "python", *LIBRARIES]
    for pack, code in zip(store.packs(size=2), ("aaa", "aaa", "bbb"), strict=False):
        said = {"versions": {"rankscope": "0.1.0", "code": code, "torch": "2.13.0"}}
        if code == "bbb":
            assert "unlike" not in status(store).text()
            assert not any("unlike" in caveat for caveat in analyze(store).caveats)
        Worker(store, [pack], pretend, retries=0, provenance=said).run()
    line = "Trials were trained by unlike versions (code aaa, bbb; trial.json says which): "
    assert [one for one in status(store).text().splitlines() if one.startswith(line)]
    assert [one for one in analyze(store).caveats if one.startswith(line)]
    write_report(store, tmp_path / "page.html")
    assert [one for one in analyze(tmp_path / "data").caveats if one.startswith(line)]


def test_versions_that_older_stores_lack_are_not_recorded() -> None:
    told = unlike_versions([{"versions": {}}, {"versions": {"a": "1"}}, {"versions": {"b": 2}}])
    assert told is not None
    assert "(a 1, not recorded; b 2, not recorded; " in told
    assert unlike_versions([{}, {"versions": {}}, {"versions": {"a": "1"}}]) is None
