"""What a study that is about to run can answer, in lines for ``rankscope plan``."""

from __future__ import annotations

import math

import pandas as pd

from rankscope.analysis.design import accuracy_noise, design
from rankscope.analysis.settings import labelled
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs


def design_lines(inputs: StudyInputs) -> list[str]:
    """One line per hypothesis and answer, with the tasks that it holds for."""
    planned = labelled(pd.DataFrame([_row(inputs, trial) for trial in inputs.trials]))
    told: dict[tuple[str, str, str], list[str]] = {}
    several = planned["model"].nunique() > 1
    for check in design(planned):
        place = f"{check.task} ({check.model})" if several else check.task
        told.setdefault((check.hypothesis, check.answerable, check.reason), []).append(place)
    return [
        f"{hypothesis} can be answered on {', '.join(places)}: {answerable}. {reason}"
        for (hypothesis, answerable, reason), places in sorted(told.items())
    ]


def _row(inputs: StudyInputs, trial: Trial) -> dict[str, object]:
    rows, is_text = inputs.rows(trial), inputs.tasks[trial.task].is_language
    per_epoch = math.ceil(rows.train / trial.batch_size)
    every = per_epoch if trial.eval_every == "epoch" else trial.eval_every
    own = {"model", "task", "method", "rank", "scaling", "learning_rate", "seed", "setting"}
    return trial.model_dump(include=own) | {
        "trial": trial.id,
        "evaluations": max(1, inputs.steps(trial) // every),
        # of a loss it is not known before there are losses
        "noise": math.nan if is_text else accuracy_noise(rows.validation),
    }
