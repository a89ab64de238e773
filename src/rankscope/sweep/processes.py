"""Starts and supervises N worker processes on this machine.

A worker gets its job as one line of JSON on standard input and ends when that input closes, so it
stops whenever its driver stops, even if that is killed. If something went wrong, its last line on
standard output says what.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rankscope.sweep.installed import BEGUN, changed
from rankscope.system import apart

TICK = 0.5  # seconds between two checks of the workers
GRACE = 60.0  # seconds that a worker has to finish its optimiser step
BEGAN = "began"  # of a job: when its driver began, in seconds since 1970
FALLS = 20  # workers that may die in a row without progress


def run_processes(
    command: Sequence[str],
    job: Mapping[str, Any],
    environments: Sequence[Mapping[str, str]],
    *,
    tick: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Runs one process per environment until all have ended. A killed process is replaced.

    ``tick`` is called repeatedly and returns whether there was progress since its last call.
    ``OSError`` with the reason when workers could not continue;
    ``KeyboardInterrupt`` stops them first.
    """
    running: dict[int, subprocess.Popen[str]] = {}
    reasons: list[str] = []
    falls = 0
    try:
        for slot, environment in enumerate(environments):
            running[slot] = _start(command, job, environment)
        while running:
            _wait(running.values())
            falls = 0 if tick() else falls
            for slot, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                reason = _last_words(process)
                if process.returncode < 0 and falls < FALLS:
                    falls += 1
                    say(
                        f"a worker was killed ({signal.Signals(-process.returncode).name}); "
                        "another takes its place"
                    )
                    running[slot] = _start(command, job, environments[slot])
                elif process.returncode:
                    status = f"a worker ended with status {process.returncode}"
                    reasons.append(reason or changed(status) or status)
    finally:
        _stop(list(running.values()))
    if reasons:
        raise OSError(reasons[0])


def _start(
    command: Sequence[str], job: Mapping[str, Any], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        **apart(),
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: noticed at the next check
        process.stdin.write(json.dumps({**job, BEGAN: BEGUN}) + "\n")
        process.stdin.flush()
    return process


def _wait(processes: Collection[subprocess.Popen[str]]) -> None:
    """Waits until the next check, or until one of them ends."""
    deadline = time.monotonic() + TICK
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        time.sleep(TICK / 10)


def _last_words(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    with process.stdout as words:
        return words.read().strip()


def _stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Ends them: gracefully if they react in time, else by force."""
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    deadline = time.monotonic() + GRACE
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
    finally:  # also when Ctrl-C is typed again
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def worker_command() -> list[str]:
    # -P: a module in the working folder, such as a transformers.py, is not imported
    return [sys.executable, "-P", "-m", "rankscope.sweep.worker_process"]
