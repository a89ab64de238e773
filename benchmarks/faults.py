"""Is a study lost when its workers, their driver, the disk or the clock fail? Kills at random
moments, then compares bit for bit.

    python benchmarks/faults.py --log faults.jsonl     # about 15 minutes of two cores; typed again, it goes on where it was stopped
    python benchmarks/faults.py --kills 5              # one round

Runs a small study on the lab's encoder with two worker processes: once undisturbed, then in rounds
of up to ten kills. In each workers die by kill -9 at random moments while they train (and their
driver at every fifth of them, and is started again), with clocks that jump in all of them. In every
second round all workers of the first driver sleep (SIGSTOP) past their lease, while a second driver
takes over, whose workers are killed, and wake up (SIGCONT) then. At last the disk fills up and a
store becomes read-only (real file systems; needs root, else left out). Each time: nothing that was
finished changes, every trial is committed once, and trials, metrics, spectra, comparison and weights
equal the undisturbed run's, bit for bit ("seconds" apart).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from damage_healed import Failed, Results

from rankscope.store.lease import is_gone
from rankscope.store.log import Log
from rankscope.store.store import Store

STUDY = """
name = "faults"
[scientific]
model = "lab"
task = ["acceptability", "agreement"]
rank = [1, 2, 4, 8, 16, 48]
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
ROUND = 10  # kills
LONGEST = 1200  # seconds of a round
CLOCK = """
import random, time
_luck = random.Random()
time.time = lambda: _luck.uniform(-1e9, 1e9)
time.time_ns = lambda: int(time.time() * 1e9)
_real = time.gmtime
time.gmtime = lambda *seconds: _real(*(seconds or (_luck.uniform(0, 1e9),)))
"""


def command(study: Path, store: Path) -> list[str]:
    words = ["run", str(study), "--store", str(store), "--workers", "2"]
    return [sys.executable, "-m", "rankscope.cli", *words]


def workers(driver: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{driver.pid}/task/{driver.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


class Disturbed:
    """A run of the study with kills on the way.

    Args:
        asleep: whether the first driver's workers sleep past their lease beside a second driver.
    """

    def __init__(
        self, study: Path, store: Path, *, kills: int, luck: random.Random, asleep: bool
    ) -> None:
        self.study, self.store, self.luck = study, store, luck
        self.kills, self.killed, self.killed_drivers = kills, 0, 0
        self.asleep = asleep  # still to come
        self.sleeping: list[int] = []
        self.held: set[int] = set()  # their claims
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.finished: dict[Path, int] = {}
        self.log: Log | None = None

    def start(self) -> None:
        clock = self.store.parent / "clock"
        clock.mkdir(exist_ok=True)
        (clock / "sitecustomize.py").write_text(CLOCK)
        path = os.pathsep.join(filter(None, [str(clock), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        words = command(self.study, self.store)
        self.drivers.append(subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            for process in self.drivers:
                process.kill()
                process.wait()
            for pid in self.sleeping:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def run(self) -> str:
        """-> what was done to it, in words. ``Failed`` where a driver ends otherwise than well."""
        with self.running():
            while any(driver.poll() is None for driver in self.drivers):
                time.sleep(self.luck.uniform(0.1, 3))  # a pack takes 1 to 3 s, a worker's start 5 s
                self.step()
        if wrong := [d.returncode for d in self.drivers if d.returncode]:
            raise Failed(f"a driver ended with {wrong[0]}")
        taken = "; claims of sleeping workers revoked, the workers woken" if self.held else ""
        return f"{self.killed} workers, {self.killed_drivers} drivers killed{taken}"

    def step(self) -> None:
        """Looks at the store, and kills, stops or wakes somebody."""
        for done, stamp in self.finished.items():
            if done.stat().st_mtime_ns != stamp:
                raise Failed(f"{done} has changed")
        found = self.store.glob("trials/*/done.json")
        self.finished |= {done: done.stat().st_mtime_ns for done in found}
        training = self.training()
        if self.asleep and training:
            self.stop(training)
        elif self.sleeping and not self.held & training:
            for pid in self.sleeping:
                os.kill(pid, signal.SIGCONT)
            self.sleeping = []
        elif self.killed < self.kills and training - self.held:
            self.kill()

    def training(self) -> set[int]:
        """The claims of workers that live: kills that hit nothing but starts would prove little."""
        if self.log is None and (self.store / "store.json").is_file():
            self.log = Store(self.store).log
        if self.log is None:
            return set()
        self.log.refresh()
        return {number for number, claim in self.log.live.items() if is_gone(claim) is False}

    def stop(self, training: set[int]) -> None:
        self.asleep, self.held = False, training
        self.sleeping = workers(self.drivers[0])
        for pid in self.sleeping:
            os.kill(pid, signal.SIGSTOP)
        self.start()

    def kill(self) -> None:
        victims = [pid for pid in workers(self.drivers[-1]) if pid not in self.sleeping]
        if not victims:
            return
        os.kill(self.luck.choice(victims), signal.SIGKILL)
        self.killed += 1
        if self.killed % 5 == 0:
            driver = self.drivers.pop()
            driver.kill()
            driver.wait()
            self.killed_drivers += 1
            self.start()


def compare(store: Store, undisturbed: Store) -> str:
    """-> what is equal. ``AssertionError`` where they differ."""
    assert store.clean() == []  # what the next run does; nothing is to be mended
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
    return f"{len(weights) // 2} trials equal, bit for bit; log: {dict(events)}"


def full_disk(study: Path, folder: Path, undisturbed: Store) -> str:
    """The store lies on a file system of a few megabytes, which grows
    after the run has given up."""
    place = folder / "small"
    place.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", place], capture_output=True
    ).returncode:
        return "left out (mounting needs root)"
    try:
        first = subprocess.run(command(study, place / "s"), capture_output=True, text=True)
        last = first.stderr.strip().splitlines()[-1]
        assert (first.returncode, "No space left" in last) == (2, True), first
        said = f"disk full: {len(Store(place / 's').done_ids())} trials finished; said: {last}"
        subprocess.run(["mount", "-o", "remount,size=600m", place], check=True)
        subprocess.run(command(study, place / "s"), check=True, capture_output=True)
        compare(Store(place / "s"), undisturbed)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        for words in (["status", str(place / "s")], command(study, place / "s")[3:]):
            done = subprocess.run(
                [sys.executable, "-m", "rankscope.cli", *words], capture_output=True, text=True
            )
            count = len(undisturbed.done_ids())
            assert done.stdout.startswith(f"{count} of {count} trials done"), done
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        victim = Store(place / "s").done_ids()[0]
        subprocess.run(["rm", "-r", place / "s" / "trials" / victim], check=True)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        refused = subprocess.run(command(study, place / "s"), capture_output=True, text=True)
        last = refused.stderr.strip().splitlines()[-1]
        assert (refused.returncode, "Read-only" in last) == (2, True), refused
        return f"{said}; read-only: status answers, a run says: {last}"
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def rounds(folder: Path, results: Results, *, kills: int, seed: int) -> None:
    """Until so many workers were killed, or one round is not as wanted."""
    study = folder / "study.toml"
    study.write_text(STUDY)
    os.environ["OMP_NUM_THREADS"] = "1"
    whole = folder / f"undisturbed {results.version}"
    subprocess.run(command(study, whole), check=True)
    undisturbed = Store(whole)
    number, killed = 0, 0
    while killed < kills and not results.failed:
        name = f"round {number + 1}, seed {seed}"

        def attempt(number: int = number, left: int = kills - killed) -> str:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                luck, most = random.Random(f"{seed} {number}"), min(ROUND, left)
                store = Path(place, "s")
                run = Disturbed(study, store, kills=most, luck=luck, asleep=number % 2 == 1)
                return f"{run.run()}; {compare(Store(store), undisturbed)}"

        results.attempt("kills", name, attempt)
        said = results.known["kills", name]["said"]
        killed += int(said.split()[0]) if not results.failed else 0
        number += 1
    results.attempt("disk", "full, then read-only", lambda: full_disk(study, folder, undisturbed))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--log", type=Path, help="results, a line each: go on where it ends; stores beside it"
    )
    options = parser.parse_args()
    try:
        results = Results(options.log, longest=LONGEST)
    except ValueError as error:
        parser.error(str(error))
    with contextlib.ExitStack() as stack:
        if options.log is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(f"{options.log}.stores")
            folder.mkdir(exist_ok=True)
        rounds(folder, results, kills=options.kills, seed=options.seed)
    print(f"version {results.version}\n{results.table()}")
    return int(bool(results.failed))


if __name__ == "__main__":
    sys.exit(main())
