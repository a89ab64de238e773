"""Harms of damage.py to a run instead of to its files: crash images, killed and stopped workers, two
drivers at once, a full disk."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pandas as pd
from damage_healed import Failed, Results, compare, quietly, tables

from pretend import create, sweep
from rankscope.store.store import Store

DRIVER = Path(__file__).parents[1] / "tests" / "sweep" / "driver.py"


# crash images


def crashed(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    """A run, cut off at a random call that makes something lasting; then the disk keeps what was
    fsynced, and of the rest nothing, zeros, a part or all."""
    place, synced, calls = folder / "s", set(), 0
    last = luck.randrange(20, 260)

    class Off(BaseException):
        pass

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls > last:
            raise Off

    fsync, rename, link = os.fsync, os.rename, os.link

    def recorded(descriptor: int) -> None:
        count()
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **more: object) -> None:
            count()
            real(*arguments, **more)

        return call

    with (
        mock.patch("os.fsync", recorded),
        mock.patch("os.rename", counted(rename)),
        mock.patch("os.link", counted(link)),
        suppress(Off),
    ):
        sweep(place)
    lost = Counter()
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.stat().st_ino not in synced:
            how = luck.choice(("kept", "empty", "cut", "gone"))
            lost[how] += 1
            if how == "gone":
                path.unlink()
            elif how != "kept":
                path.write_bytes(
                    path.read_bytes()[: 0 if how == "empty" else path.stat().st_size // 2]
                )
    finished = {path.parent.name for path in place.glob("trials/*/done.json")}
    status, said = quietly("status", str(place))
    if status not in (0, 2, 3):
        raise Failed(f"status {status}: {said[:100]}")
    trained = sweep(place)
    if finished & set(trained):
        raise Failed(f"{len(finished & set(trained))} finished trials trained again")
    compare(place, wanted)
    return f"{len(finished)} finished; unsynced: {dict(lost)}"


# processes


@contextmanager
def drivers(place: Path, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [
        subprocess.Popen([sys.executable, str(DRIVER), str(place), "7"], stderr=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def ended(
    started: list[subprocess.Popen[bytes]], place: Path, wanted: dict[str, pd.DataFrame]
) -> None:
    for process in started:
        if process.wait(timeout=240):
            raise Failed(f"a driver ended with status {process.returncode}")
    log = Store(place).log
    log.refresh()
    store = Store(place)
    if len(store.done_ids()) != len(store.planned()):
        raise Failed(f"{len(store.done_ids())} of {len(store.planned())} trials")
    sweep(place)
    compare(place, wanted)


def while_training(place: Path, act: Callable[[], None]) -> None:
    log, deadline = Store(place).log, time.monotonic() + 60
    while time.monotonic() < deadline:
        log.refresh()
        if log.live:
            return act()
        time.sleep(0.01)
    raise Failed("nobody began to train")


def killed(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    create(folder / "s")
    with drivers(folder / "s", 1) as started:
        for _ in range(3):
            while_training(
                folder / "s", lambda: os.kill(luck.choice(children(started[0])), signal.SIGKILL)
            )
            time.sleep(luck.uniform(0.2, 0.6))
        ended(started, folder / "s", wanted)
    return "3 workers"


def stopped(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    """Both workers of one driver sleep past their lease while another driver
    goes on, and wake up then."""
    create(folder / "s")
    with drivers(folder / "s", 1) as first:
        sleeping: list[int] = []

        def stop() -> None:
            sleeping.extend(children(first[0]))
            for pid in sleeping:
                os.kill(pid, signal.SIGSTOP)

        while_training(folder / "s", stop)
        with drivers(folder / "s", 1) as second:
            _until_revoked(folder / "s")
            for pid in sleeping:
                os.kill(pid, signal.SIGCONT)
            ended([*first, *second], folder / "s", wanted)
    log = Store(folder / "s").log
    log.refresh()
    return f"{sum(log.deaths.values())} trials taken from sleeping workers"


def _until_revoked(place: Path) -> None:
    log, deadline = Store(place).log, time.monotonic() + 120
    while time.monotonic() < deadline:
        log.refresh()
        if log.deaths:
            return
        time.sleep(0.1)
    raise Failed("nobody took a sleeping worker's trials")


def two_drivers(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    create(folder / "s")
    with drivers(folder / "s", 2) as started:
        ended(started, folder / "s", wanted)
    return "four workers"


def full(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    """A disk of 200 kB, which grows; then read-only."""
    place = folder / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", place], capture_output=True
    ).returncode:
        return full_pretended(folder, wanted)
    try:
        try:
            sweep(place / "s")
            raise Failed("the disk was not full")
        except OSError as error:
            said = str(error)
        subprocess.run(["mount", "-o", "remount,size=60m", place], check=True)
        sweep(place / "s")
        compare(place / "s", wanted)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        compare(place / "s", wanted)
        if sweep(place / "s"):
            raise Failed("trained in a read-only store")
        return said
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def full_pretended(folder: Path, wanted: dict[str, pd.DataFrame]) -> str:
    """Where mounting is not allowed: every write fails from some call on, then none."""
    real, said = os.fsync, ""
    for code, most in ((28, 30), (30, 60)):
        calls = itertools.count()

        def failing(
            descriptor: int, code: int = code, most: int = most, calls: Iterator[int] = calls
        ) -> None:
            if next(calls) > most:
                raise OSError(code, os.strerror(code))
            real(descriptor)

        with mock.patch("os.fsync", failing):
            try:
                sweep(folder / "s")
            except OSError as error:
                said = str(error)
    sweep(folder / "s")
    compare(folder / "s", wanted)
    return f"pretended (mounting needs root): {said}"


def harms_to_runs(folder: Path, results: Results, *, images: int) -> None:
    wanted = tables(Store(folder / "whole"))
    kinds = [("crash images", f"crash image {i + 1}", crashed) for i in range(images)]
    kinds += [
        ("kills and disks", "kill -9 of workers", killed),
        ("kills and disks", "SIGSTOP past the lease, SIGCONT", stopped),
        ("kills and disks", "two drivers", two_drivers),
        ("kills and disks", "disk full, then read-only", full),
    ]
    for part, name, attempt in kinds:
        luck = random.Random(name)
        results.attempt(part, name, lambda a=attempt, x=luck: a(folder, x, wanted))
        shutil.rmtree(folder / "s", ignore_errors=True)
        shutil.rmtree(folder / "small", ignore_errors=True)
