"""Evaluates unedited updates of one base on the same rows of a task, for paired comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rankscope.interventions.bench import Bench, inputs_of
from rankscope.interventions.settings import OWN, Settings, Variant
from rankscope.study.study_file import Study


@dataclass(frozen=True)
class Answers:
    """One update on N validation rows: the ``value`` of ``metric``, and ``answers`` and ``labels``
    (N,); of a language model mean losses, and how many tokens of a row have one."""

    metric: str
    value: float
    answers: NDArray[Any]
    labels: NDArray[Any]


class Rows:
    """The first ``rows`` validation rows of ``task``, and a model on which updates answer them.

    Args:
        base: the model that they were trained on, a folder or a hub id.
        data: where the rows are: "hub", or a folder of <TASK>/{train,validation}.tsv.
        study: the study that has ``[task.NAME]`` for ``task``, if it is not a task of GLUE.

    ``ValueError`` or ``OSError``, one line, where model, task or rows are not there.
    """

    def __init__(
        self,
        base: str,
        task: str,
        data: str,
        rows: int,
        study: Study | None = None,
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        inputs = inputs_of(base, task, data, study)
        (trial, *_) = inputs.trials
        train, validation = inputs.encoded(trial)
        self.bench = Bench(
            inputs.model_path(trial.model), inputs.tasks[trial.task], train, validation,
            Settings(rows, 0), device=inputs.device, say=say,
        )  # fmt: skip

    def answers(self, source: str | Path) -> Answers:
        """The answers of an adapter or a full fine-tune in PEFT's or transformers' format;
        ``ValueError``, one line, for anything else."""
        (table,) = self.bench.tables([(self.bench.open(source), [Variant(*OWN)])])
        (line,) = table.to_dict("records")
        labels = self.bench.labels.numpy()
        return Answers(str(line["metric"]), float(line["value"]), line["answers"], labels)
