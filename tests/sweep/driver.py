"""A driver, and its workers, that train nothing: light enough to be killed by the dozen.
``driver.py work`` is a worker."""

from __future__ import annotations

import functools
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pretend import pretend
from rankscope import sweep
from rankscope.store import lease
from rankscope.store.lease import FailureDetector
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.trial import Trial
from rankscope.sweep.processes import run_processes
from rankscope.sweep.worker import Worker
from rankscope.sweep.worker_process import serve


def slowly(
    trials: Sequence[Trial],
    folders: Sequence[TrialDir],
    progress: Callable[[int], None],
    *,
    scratch: Path,
) -> None:
    for _ in range(20):
        time.sleep(0.01)
        progress(1)
    pretend(trials, folders, progress, scratch=scratch)


def work(job: dict[str, Any]) -> None:
    years = random.Random(os.getpid())
    time.time = lambda: years.uniform(-1e9, 1e9)  # the clock jumps about; nothing may care
    if "boot" in job:  # of another machine
        lease.boot = lambda: job["boot"]  # type: ignore[assignment]
    store = Store(job["store"])
    worker = Worker(store, store.packs(size=2), slowly, retries=0, provenance={})
    if "patience" in job:  # seconds
        every = job["patience"] / 8
        worker.detector = FailureDetector(store.log, patience=job["patience"], every=every)
        sweep.worker.Lease = functools.partial(lease.Lease, every=every)  # type: ignore
    worker.run()


def drive(store: str, *patience: str) -> None:
    job: dict[str, Any] = {"store": store, **({"patience": float(patience[0])} if patience else {})}
    seen = Store(store).log

    def tick() -> bool:
        before = seen.length
        seen.refresh()
        return seen.length > before

    command = [sys.executable, __file__, "work"]
    run_processes(command, job, [{}, {}], tick=tick, say=lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    if sys.argv[1] == "work":
        sys.exit(serve(work))
    drive(*sys.argv[1:])
