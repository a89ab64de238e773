"""GLUE as gluebenchmark.com ships it gives the rows that ``nyu-mll/glue`` has."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.study.tasks import TASKS
from rankscope.train.data import read_split

# task -> the file's lines as shipped, and the rows by the hub's column names
SHIPPED = {
    "CoLA": (
        "gj04\t1\t\tOur friends \"won't buy\" this.\ngj05\t0\t*\tThem won't.\n",
        [['Our friends "won\'t buy" this.', 1], ["Them won't.", 0]],
    ),
    "SST-2": ("sentence\tlabel\na joy \t1\na bore \t0\n", [["a joy ", 1], ["a bore ", 0]]),
    "MRPC": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        '1\t7\t8\t"He said so.\tHe said "so".\n0\t9\t6\tYes.\tNo.\n',
        [['"He said so.', 'He said "so".', 1], ["Yes.", "No.", 0]],
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tHow?\t0\n"
        "4\t5\t6\tWho?\tWho is it?\t1\n",
        [["Why?", "How?", 0], ["Who?", "Who is it?", 1]],
    ),
    "STS-B": (
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\tA cat.\tA dog.\t2.500\n"
        "1\tnews\tA.\tA.\t5.000\n",
        [["A cat.", "A dog.", 2.5], ["A.", "A.", 5.0]],
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel\n0\tWho?\tHe did.\tentailment\n"
        "1\tWhen?\tHe did.\tnot_entailment\n",
        [["Who?", "He did.", 0], ["When?", "He did.", 1]],
    ),
    "RTE": (
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tA.\tA.\tentailment\n",
        [["A.", "B.", 1], ["A.", "A.", 0]],
    ),
    "WNLI": (
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t0\n1\tA.\tA.\t1\n",
        [["A.", "B.", 0], ["A.", "A.", 1]],
    ),
}


@pytest.mark.parametrize("task", SHIPPED)
def test_shipped_files(tmp_path: Path, task: str) -> None:
    content, rows = SHIPPED[task]
    (tmp_path / task).mkdir()
    (tmp_path / task / "dev.tsv").write_text(content, encoding="utf-8")
    found = read_split(str(tmp_path), TASKS[task], "validation")
    assert found.to_numpy().tolist() == rows


def test_mnli_has_two_validation_files(tmp_path: Path) -> None:
    (tmp_path / "MNLI").mkdir()
    header = "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    for name, labels in (
        ("matched", ["neutral", "contradiction"]),
        ("mismatched", ["entailment", "neutral"]),
    ):
        lines = [f"{i}\tfiction\tA {i}.\tB.\t-\t{label}\n" for i, label in enumerate(labels)]
        (tmp_path / "MNLI" / f"dev_{name}.tsv").write_text(header + "".join(lines))
    found = read_split(str(tmp_path), TASKS["MNLI"], "validation")
    assert found["label"].tolist() == [1, 2, 0, 1]
    assert found["beside"].tolist() == [False, False, True, True]
    assert found["premise"].tolist() == ["A 0.", "A 1."] * 2


def test_a_quoted_file_is_read_as_quoted(tmp_path: Path) -> None:
    """pandas and spreadsheets quote what holds a mark or a line break."""
    (tmp_path / "CoLA").mkdir()
    content = 'sentence\tlabel\n"He said ""no""."\t0\n"Two\nlines."\t1\nPlain.\t1\n'
    (tmp_path / "CoLA" / "train.tsv").write_text(content)
    found = read_split(str(tmp_path), TASKS["CoLA"], "train")
    assert found.to_numpy().tolist() == [['He said "no".', 0], ["Two\nlines.", 1], ["Plain.", 1]]


def test_a_class_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "dev.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\tentails\n")
    with pytest.raises(ValueError, match=r"row 1: .*'entails', which is none of entailment, not"):
        read_split(str(tmp_path), TASKS["RTE"], "validation")
