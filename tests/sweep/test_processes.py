"""Worker processes killed at random moments, and their driver too: nothing is lost, nothing is done
twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from pretend import TEXT, create, run
from rankscope.store.store import Store
from rankscope.study.study_file import Study

DRIVER = Path(__file__).with_name("driver.py")
STUDY = Study.parse(
    TEXT.replace("[1e-4, 1e-3]", "[1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]")
)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that it has started and that still run."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def start(store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(store)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {},
    )


@pytest.fixture
def undisturbed(tmp_path: Path) -> Store:
    store = create(tmp_path / "undisturbed", STUDY)
    run(store)
    return store


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for its children in /proc")
def test_kill_9(tmp_path: Path, undisturbed: Store) -> None:
    """A dozen kills of workers and two of their driver, at random moments of one study."""
    luck = random.Random(0)
    store = create(tmp_path / "s", STUDY)
    finished: dict[Path, int] = {}
    driver, kills, workers_killed = start(store.path), 0, 0
    deadline = time.monotonic() + 120
    log = Store(store.path).log
    while driver.poll() is None and time.monotonic() < deadline:
        time.sleep(luck.uniform(0.01, 0.3))
        log.refresh()
        # while they train, however long they took to start
        victims = children(driver) if log.live else []
        if kills >= 14 or not victims:
            continue
        kills += 1
        if kills in (5, 10):
            driver.kill()
            driver.communicate()
            driver = start(store.path)
        else:
            workers_killed += 1
            os.kill(luck.choice(victims), signal.SIGKILL)
        for path, stamp in finished.items():  # what was finished before stays as it was
            assert path.stat().st_mtime_ns == stamp
        finished |= {
            path: path.stat().st_mtime_ns for path in store.path.glob("trials/*/done.json")
        }
    assert driver.wait(timeout=30) == 0, driver.communicate()[1]
    driver.communicate()
    assert workers_killed >= 6
    after = Store(store.path)
    assert after.hash() == undisturbed.hash()
    pd.testing.assert_frame_equal(after.metrics(), undisturbed.metrics())
    pd.testing.assert_frame_equal(after.spectra(), undisturbed.spectra())
    after.log.refresh()
    assert after.log.deaths
    assert not after.log.live
    assert not list((store.path / "work").iterdir())
    assert set(Counter(committed(after)).values()) == {1}


def committed(store: Store) -> list[str]:
    """The trials of every commit in the log."""
    entries = [json.loads(path.read_text()) for path in sorted((store.path / "log").glob("*.json"))]
    claims = {
        n: entry["trials"] for n, entry in enumerate(entries, start=1) if entry["event"] == "claim"
    }
    return [
        trial for entry in entries if entry["event"] == "commit" for trial in claims[entry["claim"]]
    ]


def test_workers_that_cannot_go_on_say_why(tmp_path: Path) -> None:
    driver = start(create(tmp_path / "s", STUDY).path)
    (tmp_path / "s" / "store.json").unlink()
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "expected a store" in err
