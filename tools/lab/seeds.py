"""How reliably each task of the lab is learnt: the study ``lab`` at LoRA's best rate and at full
fine-tuning's, over many seeds, as a Markdown table.

    python tools/lab/seeds.py --store FOLDER [--seeds 20]

Two stores in FOLDER, since LoRA is compared with full fine-tuning only inside one. It can be
stopped and started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from rankscope.study.study_file import Study
from rankscope.sweep.run import run

BEST = {"lora": 5e-3, "full": 1e-3}  # docs/lab.md
LEARNT = 0.85


def study(method: str, seeds: int) -> Study:
    """The shipped study, one method at its best rate."""
    lab = Study.load("lab")
    rates = {"learning_rate": [BEST[method]], "seed": list(range(seeds))}
    return lab.model_copy(
        update={
            "scientific": lab.scientific.model_copy(update={"method": [method]}),
            "nuisance": lab.nuisance.model_copy(update=rates),
            "arm": [],
        }
    )


def table(trials: pd.DataFrame) -> str:
    """One row per task and configuration: how many seeds learnt it, the least and the median."""
    lines = [
        f"| task | configuration | seeds with best accuracy above {LEARNT} | least | median |",
        "|---|---|---|---|---|",
    ]
    for (task, method, rank), own in trials.groupby(["task", "method", "rank"], dropna=False):
        name = "full fine-tuning" if method == "full" else f"LoRA r = {rank:g}"
        name += f", {BEST[method]:g}"
        learnt = f"{(own['best'] > LEARNT).sum()} of {len(own)}"
        lines.append(
            f"| {task} | {name} | {learnt} | {own['best'].min():.3f} | {own['best'].median():.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tools/lab/seeds.py", description=__doc__)
    parser.add_argument("--store", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    found = [
        run(study(method, options.seeds), options.store / method, workers=1).trials()
        for method in BEST
    ]
    print(table(pd.concat(found, ignore_index=True)))


if __name__ == "__main__":
    main()
