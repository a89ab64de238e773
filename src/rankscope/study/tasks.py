"""The tasks: which columns they read, how many labels they have, and the metric that chooses among
trials."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One sentence-classification task, with the column names of ``nyu-mll/glue``."""

    name: str
    text: tuple[str, ...]  # one column, or the two sides of a pair
    num_labels: int  # 1: regression
    metric: str  # higher is better; "best" and the chosen learning rate mean this one
    validation: str = "validation"  # the split that is validated on
    beside: str | None = None  # a second one: its metrics are reported, and choose nothing

    @property
    def config(self) -> str:
        """The task's name in ``nyu-mll/glue``: "SST-2" is "sst2" there."""
        return self.name.lower().replace("-", "")


_SENTENCE, _PAIR = ("sentence",), ("sentence1", "sentence2")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("CoLA", _SENTENCE, 2, "matthews_correlation"),
        Task("SST-2", _SENTENCE, 2, "accuracy"),
        Task("MRPC", _PAIR, 2, "accuracy"),
        Task("STS-B", _PAIR, 1, "pearson"),
        Task("QQP", ("question1", "question2"), 2, "accuracy"),
        Task(
            "MNLI",
            ("premise", "hypothesis"),
            3,
            "accuracy",
            "validation_matched",
            "validation_mismatched",
        ),
        Task("QNLI", ("question", "sentence"), 2, "accuracy"),
        Task("RTE", _PAIR, 2, "accuracy"),
        Task("WNLI", _PAIR, 2, "accuracy"),
        Task("acceptability", _SENTENCE, 2, "accuracy"),
        Task("paraphrase", _PAIR, 2, "accuracy"),
        Task("entailment", _PAIR, 2, "accuracy"),
    )
}


def task_named(name: str) -> Task:
    """The task of that name; ``ValueError`` with the nearest name otherwise."""
    if name in TASKS:
        return TASKS[name]
    folded = {known.lower(): known for known in TASKS}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
    raise ValueError(f"task: expected one of {', '.join(TASKS)}; found {name!r}{hint}")
