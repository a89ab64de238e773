"""Is a study lost when its workers, their driver, the disk or the clock fail? Kills at random
moments, then compares bit for bit.

    python benchmarks/faults.py [--kills 50] [--seed 0]

Runs a small study on the lab's encoder twice with two worker processes: undisturbed, and while
workers die by kill -9 at random moments (and their driver at every fifth of them, and is started
again), with clocks that jump in all of them. Then the disk fills up and a store becomes read-only
(real file systems; needs root, else left out). Each time: nothing that was finished changes,
every trial is committed once, and trials, metrics, spectra and weights equal the undisturbed
run's, bit for bit ("seconds" apart).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from rankscope.store.lease import is_gone
from rankscope.store.store import Store

STUDY = """
name = "faults"
[scientific]
model = "lab"
task = ["acceptability", "agreement"]
rank = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
[nuisance]
learning_rate = [1e-3, 1e-2]
seed = [0, 1]
[fixed]
data = "lab"
batch_size = 16
steps = 30
eval_every = 15
validation_rows = 64
lora_alpha = 16
"""
CLOCK = """
import random, time
_luck = random.Random()
time.time = lambda: _luck.uniform(-1e9, 1e9)
time.time_ns = lambda: int(time.time() * 1e9)
_real = time.gmtime
time.gmtime = lambda *seconds: _real(*(seconds or (_luck.uniform(0, 1e9),)))
"""


def command(study: Path, store: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "rankscope.cli",
        "run",
        str(study),
        "--store",
        str(store),
        "--workers",
        "2",
    ]


def workers(driver: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{driver.pid}/task/{driver.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def _training(store: Path) -> bool:
    """Whether a worker that lives holds a pack: kills that hit nothing but
    starts would prove little."""
    if not (store / "store.json").is_file():
        return False
    log = Store(store).log
    log.refresh()
    return any(is_gone(claim) is False for claim in log.live.values())


def disturbed(study: Path, store: Path, folder: Path, *, kills: int, luck: random.Random) -> int:
    """Runs the study to its end, killing on the way. -> how many workers"""
    (folder / "clock").mkdir(exist_ok=True)
    (folder / "clock" / "sitecustomize.py").write_text(CLOCK)
    path = os.pathsep.join(filter(None, [str(folder / "clock"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command(study, store), env=environment, stderr=subprocess.DEVNULL)

    driver, killed, drivers, finished = start(), 0, 0, {}
    while driver.poll() is None:
        time.sleep(luck.uniform(0.1, 3))  # a pack takes 1 to 3 s, a worker's start 5 s
        victims = workers(driver) if _training(store) else []
        for done, stamp in finished.items():
            assert done.stat().st_mtime_ns == stamp, f"{done} has changed"
        finished |= {done: done.stat().st_mtime_ns for done in store.glob("trials/*/done.json")}
        if killed < kills and victims:
            os.kill(luck.choice(victims), signal.SIGKILL)
            killed += 1
            if killed % 5 == 0:
                driver.kill()
                driver.wait()
                drivers += 1
                driver = start()
            print(
                f"kill {killed}, {len(finished)} trials finished",
                end="\r",
                file=sys.stderr,
                flush=True,
            )
    assert driver.returncode == 0, driver.returncode
    print(f"{killed} workers and {drivers} drivers killed, clocks jumping", flush=True)
    return killed


def compare(store: Store, undisturbed: Store) -> None:
    """Raises AssertionError where they differ."""
    assert sorted(t.id for t in store.planned()) == store.done_ids()
    assert store.hash() == undisturbed.hash()
    for mine, other in (
        (store.metrics(), undisturbed.metrics()),
        (store.spectra(), undisturbed.spectra()),
        (store.trials().drop(columns="seconds"), undisturbed.trials().drop(columns="seconds")),
        (store.comparison(), undisturbed.comparison()),
    ):
        pd.testing.assert_frame_equal(mine, other, check_exact=True)
    weights = sorted(p.relative_to(store.path) for p in store.path.glob("trials/*/*/*.safetensors"))
    assert len(weights) == 2 * len(store.done_ids())
    for path in weights:
        assert (store.path / path).read_bytes() == (undisturbed.path / path).read_bytes(), path
    entries = [json.loads(p.read_text()) for p in sorted((store.path / "log").glob("*.json"))]
    claims = {n: entry for n, entry in enumerate(entries, start=1) if entry["event"] == "claim"}
    commits = Counter(
        t for e in entries if e["event"] == "commit" for t in claims[e["claim"]]["trials"]
    )
    assert set(commits.values()) == {1}
    assert len(commits) == len(store.done_ids())
    assert not store.storage.names("work")
    events = Counter(entry["event"] for entry in entries)
    print(f"    equal, bit for bit: {len(weights) // 2} trials; log: {dict(events)}", flush=True)


def full_disk(study: Path, folder: Path, undisturbed: Store) -> None:
    """The store lies on a file system of a few megabytes, which grows
    after the run has given up."""
    place = folder / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", place], capture_output=True
    ).returncode:
        print("disk full, read-only: left out (mounting needs root)")
        return
    try:
        first = subprocess.run(command(study, place / "s"), capture_output=True, text=True)
        last = first.stderr.strip().splitlines()[-1]
        assert (first.returncode, "No space left" in last) == (2, True), first
        print(f"disk full: {len(Store(place / 's').done_ids())} trials finished; said: {last}")
        subprocess.run(["mount", "-o", "remount,size=600m", place], check=True)
        subprocess.run(command(study, place / "s"), check=True, capture_output=True)
        compare(Store(place / "s"), undisturbed)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        for words in (["status", str(place / "s")], command(study, place / "s")[3:]):
            done = subprocess.run(
                [sys.executable, "-m", "rankscope.cli", *words], capture_output=True, text=True
            )
            assert done.stdout.startswith("96 of 96 trials done"), done
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        victim = Store(place / "s").done_ids()[0]
        subprocess.run(["rm", "-r", place / "s" / "trials" / victim], check=True)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        refused = subprocess.run(command(study, place / "s"), capture_output=True, text=True)
        last = refused.stderr.strip().splitlines()[-1]
        assert (refused.returncode, "Read-only" in last) == (2, True), refused
        print(f"read-only: status answers, a run says: {last}")
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = folder / "study.toml"
        study.write_text(STUDY)
        os.environ["OMP_NUM_THREADS"] = "1"
        subprocess.run(command(study, folder / "undisturbed"), check=True)
        undisturbed = Store(folder / "undisturbed")
        left, luck = options.kills, random.Random(options.seed)
        while left > 0:  # once more where a study ends before its kills do
            store = folder / f"{left} to come"
            left -= disturbed(study, store, folder, kills=left, luck=luck)
            compare(Store(store), undisturbed)
        full_disk(study, folder, undisturbed)


if __name__ == "__main__":
    main()
