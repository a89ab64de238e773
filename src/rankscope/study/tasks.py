"""The tasks: their columns, classes and metric, and the settings that Hu et al. 2021 trained them
with.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Metric = Literal[
    "accuracy", "f1_macro", "f1", "matthews_correlation", "pearson", "spearman", "eval_loss"
]
REGRESSION = ("pearson", "spearman")  # metrics of numbers
LANGUAGE = ("eval_loss",)  # metrics of language models; all others are metrics of classes
Kind = Literal["classification", "regression", "causal-lm", "sft"]


@dataclass(frozen=True)
class Task:
    """One task. GLUE's have the column names of ``nyu-mll/glue``.

    ``kind`` "causal-lm" and "sft" train a language model: on the whole text, or on the answers of
    a chat. They have no classes (``num_labels`` 1), and their metric is a loss.
    """

    name: str
    text: tuple[str, ...]  # one column, or the two sides of a pair
    num_labels: int  # 1: regression
    metric: str  # chooses the best checkpoint and learning rate
    validation: str = "validation"  # the validation split
    beside: str | None = None  # a second one: its metrics are reported but choose nothing
    labels: tuple[str, ...] = ()  # the classes' names, in the order of their numbers
    more: tuple[str, ...] = ()  # further reported metrics
    kind: Kind = "classification"  # built-in regressions have ``num_labels`` 1
    greater_is_better: bool = True  # direction of the metric
    # the user's own metric (``with_metric``)
    function: Callable[[Any, Any], float] | None = field(default=None, compare=False)

    @property
    def config(self) -> str:
        """The task's name in ``nyu-mll/glue``: "SST-2" is "sst2" there."""
        return self.name.lower().replace("-", "")

    @property
    def is_language(self) -> bool:
        return self.kind in ("causal-lm", "sft")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every reported metric: always accuracy for classes, and both correlations for numbers."""
        always = REGRESSION if self.num_labels == 1 else ("accuracy",)
        return tuple(dict.fromkeys((*always, *self.more, self.metric)))


def with_metric(
    task: Task, function: Callable[[Any, Any], float], *, greater_is_better: bool
) -> Task:
    """The task with a user's metric: a function of logits (N, C) and labels (N,), numpy arrays; C =
    1 for regression. The metric has the function's name; the task's own metric is reported beside
    it. ``ValueError`` for a language model, or a function without a name."""
    name = getattr(function, "__name__", "")
    if task.is_language:
        raise ValueError(
            f"metric: expected tasks with classes or numbers; {task.name} is {task.kind}, whose "
            "metric is eval_loss"
        )
    if not name.isidentifier() or name in (*get_args(Metric), "perplexity", "step", "epoch"):
        raise ValueError(
            f"metric: expected a function with a name of its own, which the metric is called by; "
            f"found {name or function!r}"
        )
    return replace(
        task,
        metric=name,
        more=(*task.more, task.metric),
        greater_is_better=greater_is_better,
        function=function,
    )


_SENTENCE, _PAIR = ("sentence",), ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")

# Classes in the order of nyu-mll/glue; WNLI's is the reverse of RTE's.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("CoLA", _SENTENCE, 2, "matthews_correlation", labels=("unacceptable", "acceptable")),
        Task("SST-2", _SENTENCE, 2, "accuracy", labels=("negative", "positive")),
        Task("MRPC", _PAIR, 2, "accuracy", labels=("not_equivalent", "equivalent"), more=("f1",)),
        Task("STS-B", _PAIR, 1, "pearson"),
        Task(
            "QQP",
            ("question1", "question2"),
            2,
            "accuracy",
            labels=("not_duplicate", "duplicate"),
            more=("f1",),
        ),
        Task(
            "MNLI",
            ("premise", "hypothesis"),
            3,
            "accuracy",
            "validation_matched",
            "validation_mismatched",
            labels=("entailment", "neutral", "contradiction"),
        ),
        Task("QNLI", ("question", "sentence"), 2, "accuracy", labels=_ENTAILED),
        Task("RTE", _PAIR, 2, "accuracy", labels=_ENTAILED),
        Task("WNLI", _PAIR, 2, "accuracy", labels=_ENTAILED[::-1]),
        Task("acceptability", _SENTENCE, 2, "accuracy"),
        Task("agreement", _SENTENCE, 2, "accuracy"),
        Task("reference", _PAIR, 2, "accuracy"),
        # the lab's tasks of earlier versions, no longer generated: their stores open
        Task("determiner", _SENTENCE, 2, "accuracy"),
        Task("paraphrase", _PAIR, 2, "accuracy"),
        Task("entailment", _PAIR, 2, "accuracy"),
    )
}


def task_named(name: str) -> Task:
    """The built-in task of that name; ``ValueError`` with the nearest name otherwise."""
    check_task(name)
    return TASKS[name]


def check_task(name: str, own: Collection[str] = ()) -> None:
    """``ValueError`` unless it is a built-in task or one of the study's ``own``."""
    known = (*own, *TASKS)
    if name in known:
        return
    folded = {task.lower(): task for task in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
    raise ValueError(
        f"task: expected one of {', '.join(known)}, or a table [task.{name}]; found {name!r}{hint}"
    )


def check_one_kind(tasks: Iterable[Task]) -> None:
    """``ValueError`` for language models beside classifiers."""
    kinds = {task.is_language: task for task in tasks}
    if len(kinds) > 1:
        raise ValueError(
            "task: expected language models or classifiers, not both in one study; found "
            f"{kinds[True].name} ({kinds[True].kind}) and {kinds[False].name}: take a study for "
            "each"
        )


Name = Literal["paper", "scripts"]


@dataclass(frozen=True)
class Recipe:
    batch_size: int
    epochs: float
    lora_alpha: float
    max_length: int


_BASE = {
    "MNLI": (16, 30),
    "SST-2": (16, 60),
    "MRPC": (16, 30),
    "CoLA": (32, 80),
    "QNLI": (32, 25),
    "QQP": (16, 25),
    "RTE": (32, 80),
    "STS-B": (16, 40),
}
_LARGE = {
    "MNLI": (4, 10, 128),
    "SST-2": (4, 10, 128),
    "MRPC": (4, 20, 512),
    "CoLA": (4, 20, 128),
    "QNLI": (4, 10, 512),
    "QQP": (4, 20, 512),
    "RTE": (8, 20, 512),
    "STS-B": (8, 30, 512),
}
_SCRIPTS_LARGE = _LARGE | {"SST-2": (8, 10, 512), "STS-B": (4, 10, 128)}
_GPUS = {("base", "CoLA"): 2}  # else 8


def has_recipe(*, model: str, task: str) -> bool:
    """Whether Hu et al. give settings for this model and task."""
    return task in _BASE and model.rstrip("/").lower().endswith(("roberta-base", "roberta-large"))


def recipe_for(*, model: str, task: str, name: Name = "paper") -> Recipe:
    """Hu et al.'s recipe for the task; RoBERTa-base's for models not named "...-large", batch 16
    and 30 epochs for unlisted tasks."""
    large = model.rstrip("/").endswith("-large") and task in _LARGE
    table = _SCRIPTS_LARGE if name == "scripts" else _LARGE
    batch, epochs, length = table[task] if large else (*_BASE.get(task, (16, 30)), 512)
    if name == "scripts" and task in _LARGE:
        return Recipe(
            batch * _GPUS.get(("large" if large else "base", task), 8), epochs, 16, length
        )
    return Recipe(batch, epochs, lora_alpha=16 if large else 8, max_length=length)
