"""Workers that share a store in a bucket, on an S3 server that the test starts: one is killed, the
others finish, and nothing differs from a store on a disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pretend import create, run
from rankscope.store.store import Store
from studies import study_text
from sweep.test_processes import DRIVER, STUDY, children

REAL = study_text(
    learning_rate=[1e-3, 1e-2], method="lora", seed=[0, 1], steps=12, validation_rows=32
)


def worker(store: str, cache: Path, **job: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), "work"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RANKSCOPE_CACHE": str(cache)},
    )
    assert process.stdin is not None
    print(json.dumps({"store": store, **job}), file=process.stdin, flush=True)
    return process


def wait(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def assert_equal(store: Store, undisturbed: Store) -> None:
    """Bit for bit, every trial committed once, nothing left behind."""
    assert store.hash() == undisturbed.hash()
    pd.testing.assert_frame_equal(store.metrics(), undisturbed.metrics(), check_exact=True)
    pd.testing.assert_frame_equal(store.spectra(), undisturbed.spectra(), check_exact=True)
    for id in undisturbed.done_ids():
        mine, other = (s.folder(id, weights=True).path for s in (store, undisturbed))
        for path in other.glob("*/*.safetensors"):
            assert (mine / path.relative_to(other)).read_bytes() == path.read_bytes()
    log = store.log
    entries = [json.loads(log.storage.read(f"log/{name}")) for name in log.storage.names("log")]
    commits = Counter(id for e in entries if e["event"] == "commit" for id in e["trials"])
    assert set(commits.values()) == {1}
    assert store.inspect().left_out == {}
    assert not log.live
    assert store.storage.names("work") == []


@pytest.mark.slow
@pytest.mark.parametrize("machines", ["one", "two"])
def test_one_of_two_workers_is_killed(machines: str, bucket: str, tmp_path: Path) -> None:
    """On one machine the kernel says so at once, on another only the heartbeat's silence. The other
    worker ends what it left, wherever it was."""
    run(undisturbed := create(tmp_path / "u", STUDY))
    luck = random.Random(machines)
    create(bucket, STUDY)
    seen = Store(bucket).log
    jobs = [{"patience": 4.0, **({"boot": name} if machines == "two" else {})} for name in "ab"]
    caches = [tmp_path / (f"cache {i}" if machines == "two" else "cache") for i in range(2)]
    doomed, survivor = (worker(bucket, c, **j) for c, j in zip(caches, jobs, strict=True))

    def both_work() -> bool:
        seen.refresh()
        return len({claim.worker for claim in seen.live.values()}) == 2

    wait(both_work)
    time.sleep(luck.uniform(0, 0.5))
    doomed.kill()
    doomed.communicate()
    survivor.wait(timeout=180)  # its input stays open: it follows its driver
    assert survivor.returncode == 0, survivor.communicate()
    survivor.communicate()
    assert_equal(Store(bucket), undisturbed)


@pytest.mark.slow
def test_run_with_two_workers(bucket: str, tmp_path: Path) -> None:
    """The command itself, one of its workers killed while it trains."""
    (tmp_path / "study.toml").write_text(REAL)
    command = [sys.executable, "-m", "rankscope.cli", "run", str(tmp_path / "study.toml")]

    def start(store: str, workers: int) -> subprocess.Popen[str]:
        words = [*command, "--store", store, "--workers", str(workers)]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)

    driver = start(bucket, 2)

    def trains() -> bool:
        assert driver.poll() is None, driver.communicate()
        try:
            seen = Store(bucket).log
        except FileNotFoundError:
            return False
        seen.refresh()
        return bool(seen.live) and bool(children(driver))

    wait(trains)
    os.kill(children(driver)[0], signal.SIGKILL)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert "8 of 8 trials done" in out
    assert "a worker was killed (SIGKILL); another takes its place" in err
    local = start(str(tmp_path / "local"), 1)
    local.communicate(timeout=300)
    assert_equal(Store(bucket), Store(tmp_path / "local"))


def test_a_name_that_xml_cannot_hold_is_set_aside(bucket: str) -> None:
    """S3 deletes several keys by a list in XML, which holds no escape character."""
    create(bucket, STUDY)
    store = Store(bucket)
    stray = f"{bucket.removeprefix('s3://')}/trials/\x1b[2Jgone"
    store.storage.fs.pipe_file(stray, b"x")
    store.recover(thorough=True)
    assert store.inspect().unknown == {}
    assert not store.storage.fs.exists(stray)
