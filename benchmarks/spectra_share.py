"""Claim: certified stable ranks of every trial and layer cost less than 2 % of the training
time at the default schedule.

    python benchmarks/spectra_share.py [--tasks acceptability agreement reference]

Trains the lab study as `rankscope demo` does on two cores, two processes of one thread
each, and prints what part of the packs' processor time (model on disk to results on disk;
it does not ask who else is on the machine) went into recording spectra: at step 0, at
powers of four, at every evaluation.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rankscope.store.trial_dir import TrialDir
from rankscope.study.packing import packs
from rankscope.study.study_file import Study
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.run import provenance, trainer
from rankscope.train.spectra import Recorder


def work(part: int, tasks: list[str], results: Any) -> None:
    """Every second pack. Puts (method, seconds of spectra, looks, seconds in all) of each."""
    torch.set_num_threads(1)
    inputs = StudyInputs(Study.load("lab"))
    spent: list[float] = []
    real = Recorder.record

    def timed(self: Recorder, *what: Any, **how: Any) -> None:
        began = time.process_time()
        real(self, *what, **how)
        spent.append(time.process_time() - began)

    Recorder.record = timed  # type: ignore[method-assign]
    for pack in packs([t for t in inputs.trials if t.task in tasks], size=8)[part::2]:
        spent.clear()
        with tempfile.TemporaryDirectory() as root:
            folders = [TrialDir(Path(root) / trial.id) for trial in pack]
            for trial, folder in zip(pack, folders, strict=True):
                folder.begin(trial, provenance=provenance())
            began = time.process_time()
            trainer(inputs)(pack, folders, lambda steps: None, scratch=Path(root) / "scratch")
            whole = time.process_time() - began
        results.put((pack[0].method, sum(spent), len(spent), whole))
    results.put(None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    lab = ["acceptability", "agreement", "reference"]
    parser.add_argument("--tasks", nargs="+", choices=lab, default=lab)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    for part in range(2):
        spawn.Process(target=work, args=(part, options.tasks, results)).start()
    found, ended = [], 0
    while ended < 2:
        result = results.get()
        if result is None:
            ended += 1
        else:
            found.append(result)
    print(
        f"{datetime.date.today()}  {platform.machine()}  torch {torch.__version__}  two "
        "processes of one thread"
    )
    for method in ("lora", "full"):
        chosen = [r for r in found if r[0] == method]
        spectra, looks, whole = (sum(r[i] for r in chosen) for i in (1, 2, 3))
        print(
            f"{method:5} {len(chosen):2} packs  {whole:6.1f} s of training, {spectra:5.2f} s "
            f"of it spectra at {looks} looks "
            f"({1e3 * spectra / looks:.1f} ms each): {spectra / whole:.2%}"
        )
    print(f"all   {sum(r[1] for r in found) / sum(r[3] for r in found):.2%}")


if __name__ == "__main__":
    main()
