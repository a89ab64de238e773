"""Which hypotheses a planned study can answer, as lines for ``rankscope plan``."""

from __future__ import annotations

import math

import pandas as pd

from rankscope.analysis.design import accuracy_noise, design
from rankscope.analysis.settings import labelled
from rankscope.study.settings import compared
from rankscope.study.trial import Trial
from rankscope.sweep.sizes import Sizes

_OWN = ("model", "task", "method", "rank", "scaling", "learning_rate", "seed", "setting")


def design_lines(inputs: Sizes) -> list[str]:
    """The settings that are compared, then one line per hypothesis and answer, with the tasks that
    it holds for."""
    planned = labelled(_table(inputs))
    found: dict[tuple[str, str, str], list[str]] = {}
    several = planned["model"].nunique() > 1
    for check in design(planned):
        place = f"{check.task} ({check.model})" if several else check.task
        found.setdefault((check.hypothesis, check.answerable, check.reason), []).append(place)
    return compared(inputs.trials) + [
        f"{hypothesis} can be answered on {', '.join(places)}: {answerable}. {reason}"
        for (hypothesis, answerable, reason), places in sorted(found.items())
    ]


def _table(inputs: Sizes) -> pd.DataFrame:
    """One row per trial. By columns: 100,000 rows take a tenth of the time of as many dicts."""
    trials = inputs.trials
    table = pd.DataFrame({name: [getattr(trial, name) for trial in trials] for name in _OWN})
    seen: dict[tuple[object, ...], tuple[int, float]] = {}
    for trial in trials:
        if (key := _evaluated(trial)) not in seen:
            seen[key] = _evaluations(inputs, trial)
    evaluations, noise = zip(*(seen[_evaluated(trial)] for trial in trials), strict=True)
    ids = [trial.id for trial in trials]
    return table.assign(trial=ids, evaluations=evaluations, noise=noise)


def _evaluated(trial: Trial) -> tuple[object, ...]:
    """What a trial's number of evaluations depends on."""
    length = (trial.max_length, trial.batch_size, trial.epochs, trial.steps)
    return (trial.model, trial.task, trial.eval_every, *length)


def _evaluations(inputs: Sizes, trial: Trial) -> tuple[int, float]:
    """The number of validation rows, and the noise of one."""
    rows = inputs.rows(trial)
    per_epoch = math.ceil(rows.train / trial.batch_size)
    every = per_epoch if trial.eval_every == "epoch" else trial.eval_every
    # unknown for a loss before there are losses
    noise = math.nan if inputs.is_language(trial.task) else accuracy_noise(rows.validation)
    return max(1, inputs.steps(trial) // every), noise
