"""Mutation testing: breaks one place of a room at a time and asks the room's tests whether they see
it.

    python tools/mutants.py linalg --count 80 --log mutants.jsonl    # goes on where it was stopped
    python tools/mutants.py linalg --count 80 --list                 # the same mutants, as text
    python tools/mutants.py --summary mutants.jsonl

Works on a copy of src/ and tests/, so the checkout stays as it is. Mutants are
found by `mutations.py`; a fixed seed draws the sample. Tests run in a fork of this
process, which has torch and transformers imported already. A mutant is killed if a test fails, a
module fails to import, or the tests use three times the processor time that they use on the whole
code. docs/log.md has the results and names the equivalent mutants.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutations import ROOT, Mutant, mutants

# what most tests import: each fork has it
IMPORTED = ("torch", "transformers", "peft", "pandas", "scipy.stats", "altair", "hypothesis")
IGNORED = shutil.ignore_patterns("__pycache__")
OUTPUT, PASSED = "output.txt", "passed"
DURATIONS = "durations.json"  # seconds of each test file in the last run
COPIED = "src tests docs benchmarks tools pyproject.toml README.md CONTRIBUTING.md"
TESTS = {
    "linalg": ("tests/linalg",),
    "analysis": ("tests/analysis", "tests/report"),
    "train": ("tests/train",),
}
NAMES = [field.name for field in dataclasses.fields(Mutant)]


def run_tests(copy: Path, tests: list[str], seconds: float) -> tuple[str, float]:
    """How the tests end in a fork: "passed", the failing test, or "timeout"; and the processor
    seconds used."""
    report = copy / "failed.txt"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os._exit(_run_here(copy, tests, int(seconds), report))
        finally:
            traceback.print_exc()
            os._exit(70)
    late = time.monotonic() + 600 + 5 * seconds  # asleep for ever
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() > late:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.05)
    _, status, usage = ended
    used = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name, used
    if os.WEXITSTATUS(status) in (0, 4):  # 4: a test that was asked for by name is no longer there
        return PASSED, used
    return (report.read_text() if report.exists() else "error before the tests"), used


def _run_here(copy: Path, tests: list[str], seconds: int, failed: Path) -> int:
    import hypothesis
    import pytest

    seconds_of = Counter[str]()

    class Reporter:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            seconds_of[report.nodeid.partition("::")[0]] += report.duration
            if report.failed:
                failed.write_text(report.nodeid)

        def pytest_sessionfinish(self) -> None:
            (copy / DURATIONS).write_text(json.dumps(seconds_of))

    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 1, seconds + 2))
    out = os.open(copy / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(copy)
    sys.path.insert(0, str(copy / "src"))
    os.environ["PYTHONPATH"] = str(copy / "src")
    phases = set(hypothesis.Phase) - {hypothesis.Phase.shrink, hypothesis.Phase.explain}
    hypothesis.settings.register_profile(  # the first counterexample is enough
        "mutants", derandomize=True, database=None, deadline=None, phases=tuple(phases)
    )
    options = ["-xq", "-pno:cacheprovider", "-pno:xdist", "--hypothesis-profile=mutants"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
    status = pytest.main([*options, *tests], plugins=[Reporter()])
    sys.stdout.flush()
    return int(status)


def ordered(copy: Path, tests: list[str], mutant: Mutant, durations: dict[str, float]) -> list[str]:
    """The files that name the mutant's module first, and of these and the rest the quickest."""
    module = re.compile(rf"\b{Path(mutant.file).stem}\b")

    def cost(test: str) -> tuple[bool, float]:
        return not module.search(test + (copy / test).read_text()), durations.get(test, 0.0)

    return sorted(tests, key=cost)


def killers(records: list[dict[str, str]]) -> list[str]:
    """The tests that have killed most, one of each kind: asked first, they end most mutants at
    once."""
    kills = Counter(record["by"] for record in records if "::" in record["by"])
    kinds = {test.partition("[")[0]: test for test, _ in reversed(kills.most_common())}
    return [test for test, _ in kills.most_common() if test in kinds.values()][:12]


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def examine(room: str, chosen: list[Mutant], log: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in COPIED.split():
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=IGNORED)
            else:
                shutil.copy(ROOT / name, copy / name)
        for name in IMPORTED:
            importlib.import_module(name)
        files = [p for part in TESTS[room] for p in sorted((copy / part).rglob("test_*.py"))]
        tests = [str(p.relative_to(copy)) for p in files]
        how, used = run_tests(copy, tests, 3600)
        if how != PASSED:
            found = f"{how}.\n{(copy / OUTPUT).read_text()[-2000:]}"
            raise SystemExit(f"expected tests that pass before anything is broken; found {found}")
        print(f"{room}: the tests pass, in {used:.0f} s of processor time", flush=True)
        durations = json.loads((copy / DURATIONS).read_text())
        done = [{name: record[name] for name in NAMES} for record in read(log)]
        for mutant in (m for m in chosen if dataclasses.asdict(m) not in done):
            path = copy / mutant.file
            whole = path.read_bytes()
            path.write_bytes(mutant.applied(whole))
            by, seconds = PASSED, 0.0
            first = killers([record for record in read(log) if record["room"] == room])
            for some in (first, ordered(copy, tests, mutant, durations)):
                if some and by == PASSED:
                    by, more = run_tests(copy, some, 3 * used + 10)
                    seconds += more
            path.write_bytes(whole)
            record = dataclasses.asdict(mutant) | {"room": room, "killed": by != PASSED, "by": by}
            with log.open("a") as file:
                file.write(json.dumps(record | {"seconds": round(seconds, 1)}) + "\n")
            how = "killed" if record["killed"] else "SURVIVED"
            print(f"{seconds:6.1f} s  {how}  {line(record)}  {by}", flush=True)


def line(entry: dict[str, Any]) -> str:
    before, after = (" ".join(entry[name].split())[:70] for name in ("before", "after"))
    place = f"{entry['file'].removeprefix('src/rankscope/')}:{entry['line']}"
    return f"{place} {entry['kind']}: {before} -> {after}"


def summary(log: Path) -> Iterator[str]:
    records = read(log)
    for room in [*sorted({record["room"] for record in records}), "all"]:
        killed = [bool(r["killed"]) for r in records if room in (r["room"], "all")]
        yield f"{room}: {sum(killed)} of {len(killed)} killed"
    yield from (f"survived: {line(record)}" for record in records if not record["killed"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Breaks one place of a room at a time; do its tests see it?"
    )
    parser.add_argument("room", choices=[*TESTS], nargs="?")
    parser.add_argument("--count", type=int, default=70)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--log", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--summary", type=Path)
    args = parser.parse_args()
    if args.summary is not None:
        print(*summary(args.summary), sep="\n")
        return
    if args.room is None:
        parser.error("expected a room or --summary LOG")
    every = mutants(args.room)
    chosen = random.Random(args.seed).sample(every, min(args.count, len(every)))
    print(f"{args.room}: {len(chosen)} of {len(every)} mutants", flush=True)
    if args.list:
        print(*(line(dataclasses.asdict(mutant)) for mutant in chosen), sep="\n")
    else:
        examine(args.room, chosen, args.log)


if __name__ == "__main__":
    main()
