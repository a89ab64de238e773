"""Labels as they stand in files: which are classes, which are numbers, and which are neither."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankscope.study.own_task import OwnTask
from rankscope.train.labels import class_names_of, classes_of, measured

OWN = {"data": "a.csv", "text": "text", "validation": 0.5}


def classes(column: Any, known: list[str] | None = None, **own: Any) -> tuple[str, ...]:
    names = class_names_of(pd.Series(column, dtype=object), known, "a.csv")
    return classes_of(names, OwnTask(**OWN, **own), known, "a.csv")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2**60 + 1, 2**60], (str(2**60), str(2**60 + 1))),
        ([f"{2**60}.0", f"{2**60 + 1}.0"], (str(2**60), str(2**60 + 1))),
        ([Decimal("2.00"), Decimal("10.00")], ("2", "10")),
        ([np.bool_(True), False], ("false", "true")),
        (["None", "Some", "null"], ("None", "Some", "null")),  # words among words
        (["007", "08"], ("007", "08")),
    ],
)
def test_classes_by_hand(labels: list[Any], expected: tuple[str, ...]) -> None:
    assert classes(labels) == expected


@pytest.mark.parametrize("word", ["None", "null", "NULL", "N/A", "NA", "<NA>", "?", "-inf"])
def test_numbers_of_which_some_are_none(word: str) -> None:
    with pytest.raises(ValueError, match="row 1: expected a number as label, as in") as error:
        classes(["1", word, "0", "1"])
    assert f"found {word!r}: leave out rows without one, or name all classes" in str(error.value)
    assert classes(["1", word, "0"], labels=[0, 1, word]) == ("0", "1", word)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Pos", "pos"),
        ("x", "x "),
        ("y", "y\u00a0"),
        ("01", "1"),
        ("é", "e\u0301"),
        ("True", "TRUE"),
    ],
)
def test_labels_that_differ_in_writing_alone(one: str, other: str) -> None:
    with pytest.raises(ValueError, match="differ by case, blanks or zeros alone: write"):
        classes([one, other, "neg"])
    assert classes([one, other], labels=[one, other]) == (one, other)


def test_truth_values_may_be_named_as_toml_has_them() -> None:
    assert classes([True, False], labels=[True, False]) == ("true", "false")


def test_a_row_of_a_data_set_without_a_label() -> None:
    assert classes([1, 0], known=["neg", "pos"]) == ("neg", "pos")
    with pytest.raises(
        ValueError, match=r"row 2: .* from 0 to 1; found -1: leave out rows without"
    ):
        classes([1, -1, 0], known=["neg", "pos"])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1", " 2.5 ", "-3e2"], [1.0, 2.5, -300.0]),
        ([Decimal("1.25"), Decimal("2")], [1.25, 2.0]),
        (pd.Categorical([3, 1, 3]), [3.0, 1.0, 3.0]),
        ([1_600_000_000, 1_700_000_000], [1.6e9, 1.7e9]),
    ],
)
def test_numbers_by_hand(labels: Any, expected: list[float]) -> None:
    assert measured(pd.Series(labels), "a.csv").tolist() == expected


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["1.5", "2,5"], "row 1: expected a finite number as label; found '2,5': write decimals"),
        (["1", "1e39"], "row 1: expected a finite number as label; found '1e39'"),
        (["1", "inf"], "found 'inf'"),
        ([1.0, None], "row 1: expected a finite number as label; found none"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"]), "row 0: .* found '2020-01-01 00:00:00'"),
        ([123456789, 123456790, 123456791], "float32 holds; found 123456789 to 123456791: subtr"),
        ([3, 3, 3], "expected labels that differ; all 3 rows have 3"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_number_to_learn(labels: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        measured(pd.Series(labels), "a.csv")
