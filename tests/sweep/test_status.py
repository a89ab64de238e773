"""What `rankscope status` says of a store that others are writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretend import create, pretend
from rankscope.store.lease import WorkerLock
from rankscope.sweep.status import status
from rankscope.sweep.worker import Worker

ELSEWHERE = {"host": "elsewhere", "boot": "another"}


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
