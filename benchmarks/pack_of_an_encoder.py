"""Claim: a pack of 4 trials takes less processor time a trial and step than PEFT's
own layers on the stock model.

    python benchmarks/pack_of_an_encoder.py --model FOLDER --data FOLDER [--task
    CoLA] [--steps 3] [--targets q v]

Ranks 8 and 16 at two rates, batches of 16 rows, bfloat16 products, one thread;
both sides by the same loop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.adapters import AdapterPack
from rankscope.train.one_at_a_time import PeftTrial
from rankscope.train.run import Run, rows_of

STUDY = """
name = "benchmark"
[scientific]
model = "{model}"
task = "{task}"
method = "lora"
rank = [8, 16]
[nuisance]
learning_rate = [1e-4, 1e-3]
[fixed]
data = "{data}"
batch_size = 16
steps = 20
precision = "bfloat16"
train_rows = 400
validation_rows = 50
target_modules = {targets}
"""


def seconds(
    kind: type[AdapterPack] | type[PeftTrial],
    trials: Sequence[Trial],
    inputs: StudyInputs,
    steps: int,
) -> float:
    """Processor time of a step, after one that warms up."""
    train, validation = inputs.encoded(trials[0])
    task, model = inputs.tasks[trials[0].task], inputs.model_path(trials[0].model)
    run = Run(
        kind(trials, model=model, task=task, device=torch.device("cpu")), task, train, validation
    )
    first, *rest = rows_of(trials[0], train, steps + 1)
    run.step(first, 1)
    began = time.process_time()
    for step, rows in enumerate(rest, start=2):
        run.step(rows, step)
    return (time.process_time() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", default="CoLA")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=["q", "v"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = StudyInputs(Study.parse(STUDY.format(**vars(options)).replace("'", '"')))
    trials = inputs.trials
    alone = seconds(PeftTrial, trials[:1], inputs, options.steps)
    packed = seconds(AdapterPack, trials, inputs, options.steps) / len(trials)
    print(
        f"{options.task}: PEFT {alone:.3f} s a step, a pack of {len(trials)} {packed:.3f} s a "
        "trial and step"
    )
    print(f"ratio {alone / packed:.2f}")


if __name__ == "__main__":
    main()
