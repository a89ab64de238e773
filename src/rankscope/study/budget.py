"""Refuses a study that does not say how long to train what Hu et al. do not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from rankscope.study.sections import Budget
from rankscope.study.study_file import Study
from rankscope.study.tasks import has_recipe

_PROPOSED_BATCH, _PROPOSED_STEPS = 16, 2000


def check_budget(study: Study, rows: Mapping[str, int], *, begun: Study | None = None) -> None:
    """``ValueError`` if a model and task have no recipe and the study does not say how long to
    train: RoBERTa-base's 30 or 60 epochs would be a guess.

    Args:
        rows: training rows per task; the proposed values depend on them.
        begun: the study of an existing store, which keeps its budget.
    """
    if "recipe" in study.fixed.model_fields_set:
        unknown = [task for task in study.tasks if not has_recipe(model="roberta-base", task=task)]
        pairs = itertools.product(study.models, unknown)
    else:
        pairs = itertools.product(study.models, study.tasks)
    old = set(itertools.product(begun.models, begun.tasks)) if begun else set()
    for model, task in pairs:
        if (model, task) in old:
            continue
        own = study.fixed.task.get(task, Budget())
        said = [(own.epochs, own.steps, own.batch_size)]
        said += [(study.fixed.epochs, study.fixed.steps, study.fixed.batch_size)]
        if has_recipe(model=model, task=task) or any(value for part in said for value in part):
            continue
        epochs = min(30, max(3, round(_PROPOSED_STEPS * _PROPOSED_BATCH / rows[task])))
        raise ValueError(
            f"[fixed]: expected how long to train {model} on {task}, which Hu et al. 2021 do "
            "not say; found none of epochs, steps and batch_size. Add for example: "
            f"batch_size = {_PROPOSED_BATCH} and epochs = {epochs}"
            + (
                '; or recipe = "paper", RoBERTa\'s'
                if has_recipe(model="roberta-base", task=task)
                else ""
            )
        )
