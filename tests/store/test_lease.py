"""Claims: one worker at a time, a dead one's work goes on, a late one's never counts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pretend import TRIALS, create, pretend, run
from rankscope.store.lease import FailureDetector, Lease, LeaseLost, WorkerLock, boot, is_gone
from rankscope.store.log import Claim, Log
from rankscope.store.storage import LocalStorage
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.trial import Trial
from rankscope.sweep.worker import DEATHS, Worker, given_up

ELSEWHERE = {"host": "elsewhere", "boot": "another"}


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(LocalStorage(tmp_path))


def test_one_of_many_gets_a_claim(tmp_path: Path) -> None:
    """Sixteen workers want the same hundred trials; each trial is claimed once, and the log has no
    gap."""
    won: list[tuple[str, str]] = []

    def work(name: str) -> None:
        log = Log(LocalStorage(tmp_path))
        for i in range(100):
            if log.claim([f"t{i}"], worker=name, **ELSEWHERE):
                won.append((f"t{i}", name))

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trial for trial, _ in won) == sorted(f"t{i}" for i in range(100))
    log = Log(LocalStorage(tmp_path))
    log.refresh()
    assert log.length == 100
    assert {(c.trials[0], c.worker) for c in log.live.values()} == set(won)


def test_a_late_worker_cannot_commit(log: Log) -> None:
    other = Log(log.storage)
    first = log.claim(["a", "b"], worker="x", **ELSEWHERE)
    assert first is not None
    assert log.claim(["b", "c"], worker="y", **ELSEWHERE) is None
    assert other.append(lambda: {"event": "revoke", "claim": first}) == 2
    second = other.claim(["a", "b"], worker="y", **ELSEWHERE)
    assert second is not None
    assert second > first  # the fencing number grows
    with pytest.raises(LeaseLost):
        Lease(log, first).end("commit")
    with pytest.raises(LeaseLost):
        Lease(log, first).progress(1)
    Lease(other, second).end("commit")
    log.refresh()
    assert log.done.keys() == {"a", "b"}


def test_two_workers_with_the_same_lease_make_one_result(log: Log) -> None:
    number = log.claim(["a"], worker="x", **ELSEWHERE)
    assert number is not None
    logs = [Log(log.storage) for _ in range(8)]
    for one in logs:
        one.refresh()
    ends: list[bool] = []
    threads = [
        threading.Thread(target=lambda o=one: ends.append(o.end(number, "commit"))) for one in logs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ends) == 1


def test_no_wall_clock_decides(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's clock jumps back by years at every look; a worker dies by its heartbeats
    alone."""
    years = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: -3e7 * next(years))
    monkeypatch.setattr(time, "gmtime", lambda *_: time.struct_time((2000, 1, 1, 0, 0, 0, 0, 1, 0)))
    number = log.claim(["a"], worker="x", **ELSEWHERE)
    assert number is not None
    claim, now = log.live[number], [0.0]
    detector = FailureDetector(log, clock=lambda: now[0], patience=60)
    mine = Lease(log, number, every=0.01)
    with mine.beating():
        for now[0] in range(0, 300, 10):
            time.sleep(0.05)
            assert not detector.is_dead(claim)
    dead_at = next(t for t in range(300, 600, 10) if _at(now, t) and detector.is_dead(claim))
    assert 360 <= dead_at <= 380


def _at(now: list[float], t: float) -> bool:
    now[0] = t
    return True


def test_the_kernel_says_who_is_dead() -> None:
    code = """if True:
        import sys, time
        from rankscope.store.lease import WorkerLock
        mine = WorkerLock()
        print(mine.worker, flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    claim = Claim(1, process.stdout.readline().strip(), "here", boot(), ("a",))
    assert is_gone(claim) is False
    process.kill()
    process.wait()
    process.stdout.close()
    assert is_gone(claim) is True
    assert is_gone(Claim(1, claim.worker, "there", "another boot", ("a",))) is None
    assert is_gone(Claim(1, "../" + claim.worker, "here", boot(), ("a",))) is None
    assert is_gone(Claim(1, "0" * 32, "here", boot(), ("a",))) is None


def test_a_living_worker_is_present() -> None:
    lock = WorkerLock()
    claim = Claim(1, lock.worker, lock.host, lock.boot, ("a",))
    assert is_gone(claim) is False
    lock.leave(holding=False)
    assert is_gone(claim) is None


def test_an_heir_finds_the_scratch_and_empty_folders(tmp_path: Path) -> None:
    store = create(tmp_path / "s")

    def dies(
        trials: Sequence[Trial],
        folders: Sequence[TrialDir],
        progress: Callable[[int], None],
        *,
        scratch: Path,
    ) -> None:
        (scratch / "checkpoint.safetensors").write_bytes(b"half way")
        folders[0].log(step=1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, dies, size=6)
    found: list[bytes] = []

    def goes_on(trials: Any, folders: Sequence[TrialDir], progress: Any, *, scratch: Path) -> None:
        found.extend(path.read_bytes() for path in scratch.iterdir())
        assert not any(folder.metrics() for folder in folders)
        pretend(trials, folders, progress, scratch=scratch)

    assert len(run(Store(store.path), goes_on, size=6)) == len(TRIALS)
    assert found == [b"half way"]
    assert os.listdir(store.path / "work") == []


def test_an_heir_of_an_heir_finds_the_scratch(tmp_path: Path) -> None:
    """The first successor died before it took over, the second one does."""
    store = create(tmp_path / "s")
    ids = ["a", "b"]
    for worker in ("x", "y"):
        number = store.log.claim(ids, worker=worker, **ELSEWHERE)
        assert number is not None
        if worker == "x":
            with store.claim(number).dir(ids) as work:
                (work / "scratch" / "checkpoint").touch()
        store.log.end(number, "revoke")
    third = store.log.claim(ids, worker="z", **ELSEWHERE)
    assert third is not None
    with store.claim(third).dir(ids) as work:
        assert [path.name for path in (work / "scratch").iterdir()] == ["checkpoint"]
    assert store.storage.names("work") == [str(third)]


def test_a_worker_that_lost_its_lease_goes_on_with_other_packs(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    calls: list[str] = []

    def robbed(trials: Sequence[Trial], *rest: Any, **more: Any) -> None:
        calls.append(trials[0].id)
        if len(calls) == 1:
            other = Store(store.path).log
            other.append(lambda: {"event": "revoke", "claim": max(other.live)})
        pretend(trials, *rest, **more)

    trained = run(store, robbed)
    assert sorted(trained) == sorted(t.id for t in TRIALS)
    assert calls.count(calls[0]) == 2  # in vain the first time
    assert store.log.deaths[calls[0]] == 1


def test_two_workers_share_a_store(tmp_path: Path) -> None:
    store = create(tmp_path / "s")
    seen: list[str] = []
    barrier = threading.Barrier(2, timeout=20)

    def together(trials: Sequence[Trial], *rest: Any, **more: Any) -> None:
        if len(seen) < 2:
            seen.append("both are training now")
            barrier.wait()
        pretend(trials, *rest, **more)

    trained: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: trained.append(run(Store(store.path), together)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(id for ids in trained for id in ids) == sorted(t.id for t in TRIALS)
    assert all(trained)


def test_who_waits_takes_over_from_the_dead(tmp_path: Path) -> None:
    """A worker elsewhere holds a pack and beats no more: after PATIENCE its pack is trained
    here."""
    store = create(tmp_path / "s")
    pack = store.packs(size=2)[0]
    held = store.log.claim([t.id for t in pack], worker="dead", **ELSEWHERE)
    worker = Worker(Store(store.path), store.packs(size=2), pretend, retries=0, provenance={})
    worker.detector = FailureDetector(worker.log, patience=0.3, every=0.05)
    assert sorted(worker.run().trained) == sorted(t.id for t in TRIALS)
    assert held not in worker.log.live


def test_a_pack_that_kills_its_workers_is_given_up(log: Log) -> None:
    for n in range(DEATHS):
        assert given_up(log, "a", retries=0) is None, n
        number = log.claim(["a"], worker=f"w{n}", **ELSEWHERE)
        assert number is not None
        log.end(number, "revoke")
    assert "workers died" in str(given_up(log, "a", retries=0))
    log.forget(["a"])
    assert given_up(log, "a", retries=0) is None


def test_a_released_pack_is_no_death(log: Log) -> None:
    for _ in range(2 * DEATHS):
        number = log.claim(["a"], worker="w", **ELSEWHERE)
        assert number is not None
        log.end(number, "release")
    assert log.deaths["a"] == 0
    assert given_up(log, "a", retries=0) is None
