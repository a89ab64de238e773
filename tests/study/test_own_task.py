"""``[task.NAME]``: what it may say, and the one line that says what is wrong with it."""

from __future__ import annotations

import pytest

from rankscope.study.study_file import Study
from rankscope.sweep.sizes import check_budget
from studies import SMALL, study_text

TEXT = """
name = "t"
[scientific]
model = "m"
task = ["mine", "CoLA"]
[nuisance]
learning_rate = 1e-3
[fixed]
steps = 9
[fixed.task.mine]
batch_size = 4
[task.mine]
data = "a.csv"
text = "review"
validation = 0.2
"""


def parsed(old: str = "", new: str = "") -> Study:
    assert old in TEXT
    return Study.parse(TEXT.replace(old, new, 1), label="t.toml")


def test_an_own_task_stands_beside_built_in_ones() -> None:
    study = parsed()
    assert {(t.task, t.batch_size) for t in study.trials({"m": 8})} == {("mine", 4), ("CoLA", 32)}
    assert Study(**study.model_dump(mode="json")).task == study.task


def test_a_study_without_own_tasks_has_the_ids_that_it_had() -> None:
    """Pinned before there were own tasks."""
    ids = {trial.task: trial.id for trial in parsed().trials({"m": 8}) if trial.method == "full"}
    assert ids["CoLA"] == "2b9bcd8e1027b0df"


@pytest.mark.parametrize(
    ("settings", "metric", "regression"),
    [
        ("", "accuracy", False),
        ('metric = "f1_macro"', "f1_macro", False),
        ('metric = "spearman"', "spearman", True),
        ('kind = "regression"', "pearson", True),
        ('kind = "classification"', "accuracy", False),
    ],
)
def test_kind_and_metric_follow_from_each_other(
    settings: str, metric: str, regression: bool
) -> None:
    own = parsed("validation", f"{settings}\nvalidation").task["mine"]
    assert (own.chosen_metric, own.is_regression) == (metric, regression)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("text =", "texts =", "[task.mine] texts: unknown key; did you mean 'text'?"),
        (
            "0.2",
            '0.2\nkind = "sft"\nmetric = "accuracy"',
            "[task.mine]: metric: expected eval_loss",
        ),
        ("0.2", '0.2\nmetric = "eval_loss"', 'with kind = "causal-lm" and "sft", and with no'),
        ("0.2", '0.2\nkind = "sft"\nlabel = "a"', 'label: expected none with kind = "sft"'),
        ('"review"', '["a", "b"]\nkind = "causal-lm"', "text: expected one column with kind = "),
        ('text = "review"', "", "[task.mine]: text: expected a value, found none"),
        ('"review"', '["a", "b", "c"]', "[task.mine] text: expected one or two names of columns"),
        ('"review"', "3", "[task.mine] text: expected one or two names of columns; found 3"),
        ('"review"', '"label"', "expected different columns; found ['label', 'label']"),
        ("0.2", "1.2", "[task.mine] validation: expected a file, a split, or a share of the rows"),
        ("0.2", "true", "[task.mine] validation: expected a file, a split, or a share of the rows"),
        ("0.2", "{ fraction = 0.2, sed = 1 }", "or { fraction = 0.2, seed = 0 }; found 1"),
        ("0.2", "0.7\ntrain = 0.7", "shares that add up to 1 at most"),
        ('data = "a.csv"', "", "[task.mine]: data: expected a file, a folder or a hub id"),
        ("0.2", '0.2\nmetric = "acuracy"', "expected 'accuracy', 'f1_macro'"),
        ("0.2", '0.2\nkind = "regresion"', "[task.mine] kind: expected 'classification'"),
        ("0.2", '0.2\nkind = "regression"\nmetric = "f1"', "expected pearson or spearman"),
        ("0.2", '0.2\nkind = "classification"\nmetric = "pearson"', "expected accuracy, f1_macro"),
        ("0.2", '0.2\nlabels = ["a"]', "[task.mine] labels: expected 2 values at least; found"),
        ("0.2", '0.2\nlabel = ""', "[task.mine] label: expected text that is not empty; found ''"),
        ("0.2", '0.2\nlabels = ["a", "a"]', "[task.mine]: labels: expected every class once"),
        ('["mine"', '["../x"', "task: expected one of mine"),
        ("[task.mine]", '[task."../x"]', "expected a name of letters, digits, blanks"),
        ("[task.mine]", "[task.RTE]", "[task.RTE]: expected another name: RTE is a built-in task"),
        ('["mine"', '["mien"', "found 'mien'; did you mean 'mine'?"),
        ("fixed.task.mine", "fixed.task.yours", "a table [task.yours]; found 'yours'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"t\.toml: ") as error:
        parsed(old, new)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def study_of(model: str, task: str, fixed: str) -> Study:
    table = '[task.mine]\ntext = "t"\ndata = "a.csv"\nvalidation = 0.1\n'
    table = '[task.mine]\ntext = "t"\ndata = "a.csv"\nvalidation = 0.1\n'
    bare = {name: None for name in SMALL if name != "learning_rate"}
    return Study.parse(study_text(model, task, **bare, own=f"{fixed}\n{table}"))


@pytest.mark.parametrize(
    ("model", "task", "fixed", "asked"),
    [
        ("FacebookAI/roberta-base", "CoLA", "", False),
        ("FacebookAI/roberta-large", "RTE", "", False),
        ("FacebookAI/roberta-base", "mine", "", True),
        ("FacebookAI/roberta-base", "WNLI", 'recipe = "paper"', True),
        ("minilm", "CoLA", "", True),
        ("minilm", "CoLA", 'recipe = "paper"', False),
        ("minilm", "CoLA", "steps = 9", False),
        ("minilm", "mine", "epochs = 2", False),
        ("minilm", "mine", "batch_size = 4", False),
        ("minilm", "mine", "[fixed.task.mine]\nsteps = 4", False),
    ],
)
def test_how_long_to_train_is_asked_where_nobody_says(
    model: str, task: str, fixed: str, asked: bool
) -> None:
    study = study_of(model, task, fixed)
    if not asked:
        return check_budget(study, {task: 1600})
    with pytest.raises(ValueError, match=f"how long to train {model} on {task}") as error:
        check_budget(study, {task: 1600})
    assert "batch_size = 16 and epochs = 20" in str(error.value)  # about 2,000 steps
    assert ('recipe = "paper"' in str(error.value)) == (task == "CoLA")
    assert study.trials({model: 8})[0].epochs  # stores that were begun without are read as before
    return None
