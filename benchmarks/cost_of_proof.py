"""Claim: proving that a pack's trials do not touch each other, and compute what PEFT does, costs
at most 1 % of a pack of 300 steps.

    python benchmarks/cost_of_proof.py [--task acceptability] [--packs 3]

Trains packs of the lab study, model on disk to results on disk, one thread, and prints the processor
time of `isolation.prove` beside the rest, scaled to 300 steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from rankscope.process import without_collection

with without_collection():  # as workers import
    import torch

    from rankscope.store.trial_dir import TrialDir
    from rankscope.study.packing import packs
    from rankscope.study.study_file import Study
    from rankscope.sweep.inputs import StudyInputs
    from rankscope.sweep.run import provenance, trainer
    from rankscope.train import loop

STEPS = 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="acceptability")
    parser.add_argument("--packs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs, real, spent = StudyInputs(Study.load("lab")), loop.prove, 0.0

    def timed(*what: Any) -> None:
        nonlocal spent
        began = time.process_time()
        real(*what)
        spent += time.process_time() - began

    loop.prove = timed
    chosen = [t for t in inputs.trials if t.task == options.task and t.method == "lora"]
    for pack in packs(chosen, size=8)[: options.packs]:
        spent, steps = 0.0, 0

        def count(trials: int, K: int = len(pack)) -> None:
            nonlocal steps
            steps += trials / K

        with tempfile.TemporaryDirectory() as root:
            folders = [TrialDir(Path(root) / trial.id) for trial in pack]
            for trial, folder in zip(pack, folders, strict=True):
                folder.begin(trial, provenance=provenance())
            began = time.process_time()
            trainer(inputs)(pack, folders, count, scratch=Path(root) / "scratch")
            whole = time.process_time() - began
        rest = (whole - spent) / steps * STEPS
        print(
            f"K = {len(pack)}, ranks {sorted({t.rank for t in pack})}: proof {spent:.3f} s, "
            f"{steps:.0f} steps {whole - spent:.1f} s; of {STEPS} steps {spent / rest:.2%}"
        )


if __name__ == "__main__":
    main()
