"""Do two workers do twice the work of one, and does Ray cost anything beside plain processes?

    python benchmarks/workers.py one two                # a worker on a core, two on two: aim 1.6 times
    python benchmarks/workers.py two ray --steps 400    # two processes, two of Ray: aim 5 % more at most
    python benchmarks/workers.py wide two               # a worker of two threads, two of one thread

Each runs the same study on the lab's encoder (48 LoRA trials of 3 tasks, 12 full fine-tunes) into a
store of its own, as `rankscope run` does, and prints the wall time of the whole command and that
from the first claim to the last commit (without Python's start). The Ray cluster, one node of this
machine, is started before: a cluster is there when it is used. ``--results FILE`` keeps what was
measured, so that the runs can be made one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = """
name = "workers"
[scientific]
model = "lab"
task = ["acceptability", "agreement", "reference"]
rank = [1, 4, 16, "d"]
[nuisance]
learning_rate = [1e-4, 1e-3, 3e-3, 1e-2]
[fixed]
data = "lab"
batch_size = 16
steps = {steps}
eval_every = 75
lora_alpha = 16
"""


def measure(mode: str, steps: int) -> dict[str, float]:
    """Seconds of one run."""
    with tempfile.TemporaryDirectory() as name:
        study, store = Path(name) / "study.toml", Path(name) / "store"
        study.write_text(STUDY.format(steps=steps))
        command = [sys.executable, "-m", "rankscope.cli", "run", str(study), "--store", str(store)]
        environment = os.environ | {
            "OMP_NUM_THREADS": "2" if mode == "wide" else "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        cores = sorted(os.sched_getaffinity(0))[: 1 if mode == "one" else 2]
        if mode == "ray":
            start = [
                "ray",
                "start",
                "--head",
                "--num-cpus=2",
                "--include-dashboard=false",
                "--port=6399",
            ]
            subprocess.run(
                [str(Path(sys.executable).with_name("ray")), *start[1:]],
                check=True, env=environment, capture_output=True,
            )  # fmt: skip
            command += ["--ray", "127.0.0.1:6399", "--workers", "2"]
        else:
            command += ["--workers", "1" if mode == "wide" else str(len(cores))]
        before = time.perf_counter()  # a cluster is at hand, or it is none
        try:
            subprocess.run(
                command,
                check=True,
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
            whole = time.perf_counter() - before
        finally:
            if mode == "ray":
                subprocess.run(
                    [str(Path(sys.executable).with_name("ray")), "stop", "--force"],
                    capture_output=True,
                    check=False,
                )
        log = store / "log"
        stamps = {p: p.stat().st_mtime for p in log.glob("*.json")}
        events = {p: json.loads(p.read_text())["event"] for p in stamps}
        first = min(t for p, t in stamps.items() if events[p] == "claim")
        last = max(t for p, t in stamps.items() if events[p] == "commit")
        return {"whole": whole, "training": last - first}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modes", nargs="+", choices=["one", "wide", "two", "ray"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    kept = options.results and options.results.is_file()
    found = json.loads(options.results.read_text()) if kept else {}
    for mode in options.modes:
        found[mode] = measure(mode, options.steps)
        print(
            f"{mode:4} {found[mode]['whole']:7.1f} s in all {found[mode]['training']:7.1f} s "
            "of training",
            flush=True,
        )
    for slow, fast, says in (
        ("one", "two", "two workers beside one"),
        ("wide", "two", "two workers beside one of two threads"),
        ("two", "ray", "processes beside Ray"),
    ):
        if slow in found and fast in found:
            ratios = [found[slow][what] / found[fast][what] for what in ("whole", "training")]
            print(f"{says}: {ratios[0]:.2f} times as fast in all, {ratios[1]:.2f} in training")
    if options.results:
        options.results.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
