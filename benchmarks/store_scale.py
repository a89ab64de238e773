"""Does a store of 10,000 trials answer at once, and a plan of 100,000 trials
too? And does memory stay flat?

    python benchmarks/store_scale.py [--trials 10000] [--planned 100000] [--keep DIR]

Generates a store by a worker that claims, writes and commits as always, only that its training is
made up (every trial with 8 evaluations and the spectra of 4 sites at 14 steps; no weights, which
these commands never open), and a comparison. Then runs the commands as users do, each in a process
of its own, and prints wall time and peak resident memory beside those of a tenth of the trials.
"first" means without the tables of packs (``cache/packs``), as in a store of an older version:
every trial's own files are read. "cold" means that files' contents have left the page cache (their
names and inodes stay: that takes a restart). For a plan "first" means that models and
data are read, "again" that what they say is remembered. Aims: status 1 s, analyze 30 s cold, plan
3 s.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pandas as pd

from rankscope.analysis.frames import COMPARISON, LATER
from rankscope.analysis.selection import chosen
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.worker import Worker

WIDTH = {"lab": 128}
LAYERS = [
    f"roberta.encoder.layer.{i}.attention.self.{site}"
    for i in range(2)
    for site in ("query", "value")
]
STEPS = sorted({0, 1, 4, 16, 64, 256} | {47 * e for e in range(1, 9)})


def study(trials: int) -> Study:
    """At least so many trials: 3 tasks, 2 scaling rules, LoRA and full, ranks, rates and
    seeds to make up the number."""
    ranks = [1, 2, 4, 8, 16, 32, 64, 128]
    rates = [float(f"{1e-5 * 1.26**i:.3g}") for i in range(30)]
    seeds = math.ceil(trials / (3 * (2 * len(ranks) + 1) * len(rates)))
    return Study.parse(
        f"""
        name = "scale"
        [scientific]
        model = "lab"
        task = ["acceptability", "agreement", "reference"]
        rank = {ranks}
        scaling = ["alpha/r", "alpha/sqrt(r)"]
        [nuisance]
        learning_rate = {rates}
        seed = {list(range(seeds))}
        [fixed]
        data = "lab"
        batch_size = 16
        epochs = 3
        lora_alpha = 16
        """
    )


def fill(store: Store, trials: list[Trial]) -> None:
    """Finished trials whose numbers look like a study's, written as workers write them."""
    wanted = {trial.id for trial in trials}
    provenance = {
        "versions": {"rankscope": "0", "torch": "0"},
        "machine": {"system": "generated", "threads": 1, "gpu": None},
    }
    packs = [[trial for trial in pack if trial.id in wanted] for pack in store.packs(size=8)]
    with mock.patch("os.fsync"):  # nothing is lost here but time
        Worker(store, packs, train, retries=1, provenance=provenance).run()
    luck = random.Random(0)
    numbers = [c for c in (*COMPARISON, *LATER) if c not in ("trial", "reference", "layer", "k")]
    rows = [
        {"trial": trial, "reference": trial, "layer": layer, "k": 8}
        | {c: luck.random() for c in numbers}
        for trial in chosen(store.trials()).query("method == 'lora'")["trial"]
        for layer in LAYERS
    ]
    store.write_comparison(pd.DataFrame(rows))


def train(
    trials: Sequence[Trial],
    folders: Sequence[TrialDir],
    progress: Callable[[int], None],
    *,
    scratch: Path,
) -> None:
    """Makes up what training finds."""
    for trial, folder in zip(trials, folders, strict=True):
        luck = random.Random(trial.id)
        top = 0.9 - 0.05 * (math.log10(trial.learning_rate) + 3) ** 2 + luck.gauss(0, 0.02)
        curve = [top * (1 - math.exp(-e)) for e in range(1, 9)]
        for e, value in enumerate(curve, start=1):
            folder.log(
                step=47 * e,
                epoch=e * 0.375,
                train_loss=1 - value,
                eval_loss=1.1 - value,
                accuracy=value,
            )
        growth = 1 + 0.3 * math.log2(trial.rank or 128) * luck.uniform(0.9, 1.1)
        values = TEMPLATE["stable_rank"]  # that of W is every trial's
        table = TEMPLATE.assign(
            stable_rank=values.where(TEMPLATE["matrix"].eq("W"), values * growth)
        )
        folder.write_spectra(
            table.assign(lower=table["stable_rank"], upper=table["stable_rank"] * 1.001)
        )
        folder.finish(
            status="done", metric="accuracy", best=max(curve), best_step=376, last=curve[-1],
            steps=376,
            diverged_at=None, seconds=4.0,
        )  # fmt: skip
        progress(376)


def _spectra(luck: random.Random) -> pd.DataFrame:
    rows = [
        {
            "step": step, "layer": layer, "matrix": matrix, "m": 128, "n": 128,
            "stable_rank": luck.uniform(1, 2),
            "lower": 1.0, "upper": 2.0, "spectral_norm": 1.0, "frobenius_norm": 1.2,
            "effective_rank": 3.0,
        }
        for step in STEPS
        for layer in LAYERS
        for matrix in (("W", "dW", "W+dW") if step == 0 else ("dW", "W+dW"))
    ]  # fmt: skip
    return pd.DataFrame(rows)


TEMPLATE = _spectra(random.Random(0))


def evict(place: Path) -> None:
    """Lets the page cache forget what is in a store's files."""
    os.sync()
    for folder, _, files in os.walk(place):
        for file in files:
            descriptor = os.open(f"{folder}/{file}", os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def timed(*command: str) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of ``rankscope COMMAND``."""
    before = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "rankscope.cli", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - before
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 3), (command, process.returncode)
    return seconds, used.ru_maxrss / 1e3


def planning(text: str) -> tuple[float, float]:
    """Seconds for the trials, packs and sums of a plan, in this process: what is left
    without Python's own start."""
    from rankscope.sweep.inputs import StudyInputs
    from rankscope.sweep.plan import forecast

    inputs = StudyInputs(Study.parse(text))
    before = time.perf_counter()
    forecast(inputs, None)
    return time.perf_counter() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument(
        "--keep", type=Path, help="keep the generated stores here, and use them if they are there"
    )
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp())
    for count in (options.trials // 10, options.trials):
        place = root / str(count)
        if not (place / "store.json").is_file():
            store = Store.create(place, study(count), largest_rank=WIDTH, fingerprints={})
            fill(store, store.planned()[:count])
        print(f"{count} trials")
        for what, command in (
            ("status, first, cold", ("status", str(place))),
            ("status, first", ("status", str(place))),
            ("status", ("status", str(place))),
            ("analyze, cold", ("analyze", str(place), "--json")),
            ("analyze, first, cold", ("analyze", str(place), "--json")),
            ("analyze, first", ("analyze", str(place), "--json")),
            ("analyze", ("analyze", str(place), "--json")),
        ):
            if "first" in what:
                shutil.rmtree(place / "cache" / "packs", ignore_errors=True)
            if "cold" in what:
                evict(place)
            seconds, memory = timed(*command)
            print(f"    {what:20} {seconds:6.2f} s {memory:8.0f} MB", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RANKSCOPE_CACHE"] = cache
        for count in (options.planned // 10, options.planned):
            planned = study(count)
            path = root / f"plan-{count}.toml"
            path.write_text(planned.source)
            for what in ("first", "again"):
                seconds, memory = timed("plan", str(path))
                print(
                    f"a plan of {len(planned.trials(WIDTH))} trials, {what}: {seconds:.2f} s "
                    f"{memory:.0f} MB, as a command"
                )
            shutil.rmtree(Path(cache, "plans"))
    seconds, memory = planning(planned.source)
    print(f"    without Python's start and the reading of models and data: {seconds:.2f} s")
    if not options.keep:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
