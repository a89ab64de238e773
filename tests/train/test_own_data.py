"""Data of the user's own: read as they are written, split, and refused in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankscope.study.own_task import OwnTask
from rankscope.train.data_summary import summary
from rankscope.train.delimited_text import is_quoted
from rankscope.train.own_data import read_own_task
from rankscope.train.table_file import read_table

ODD = [
    'a "quoted" word',
    "comma, and\ttab",
    "two\r\nlines",
    "NA",
    "null",
    "  blanks  ",
    "Zürich €",
    "plain",
]


def read(folder: Path, **settings: Any) -> Any:
    return read_own_task("mine", OwnTask(**settings), folder)


def write(path: Path, frame: pd.DataFrame, encoding: str = "utf-8") -> None:
    """By the standard library's writers, which quote and escape by their own rules."""
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records")]
        path.write_text("\n".join(lines), encoding=encoding)
    else:
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter="," if path.suffix == ".csv" else "\t")
        writer.writerows([frame.columns.tolist(), *frame.to_numpy().tolist()])
        path.write_bytes(out.getvalue().encode(encoding))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_as_it_was_written(tmp_path: Path, suffix: str, encoding: str) -> None:
    frame = pd.DataFrame({"text": ODD, "label": ["007", "x"] * 4})
    write(tmp_path / f"a.{suffix}", frame, encoding)
    found = read_table(tmp_path / f"a.{suffix}")
    assert found["text"].tolist() == ODD
    assert found["label"].tolist() == ["007", "x"] * 4


def test_quotation_marks_of_a_tsv_are_fields_or_characters(tmp_path: Path) -> None:
    quoted = 'text\tlabel\n"a ""b"" c"\t1\nplain\t0\n'
    characters = 'text\tlabel\n"a b\t1\nhe said "no"\t0\n'
    assert is_quoted(quoted)
    assert not is_quoted(characters)
    for content, expected in (
        (quoted, ['a "b" c', "plain"]),
        (characters, ['"a b', 'he said "no"']),
    ):
        (tmp_path / "a.tsv").write_text(content)
        assert read_table(tmp_path / "a.tsv")["text"].tolist() == expected


def test_classes_are_the_labels_in_order(tmp_path: Path) -> None:
    names = ["joy", "anger", "fear", "calm"]
    write(tmp_path / "a.csv", pd.DataFrame({"t": list("abcdefgh"), "y": names * 2}))
    write(tmp_path / "b.csv", pd.DataFrame({"t": list("ij"), "y": ["fear", "joy"]}))
    parts = {"text": "t", "label": "y", "train": "a.csv", "validation": "b.csv"}
    task, train, validation = read(tmp_path, **parts)
    assert task.labels == ("anger", "calm", "fear", "joy")
    assert train["label"].tolist() == [3, 0, 2, 1] * 2
    assert validation["label"].tolist() == [2, 3]
    assert read(tmp_path, **parts, labels=names)[0].labels == tuple(names)
    assert read(tmp_path, **parts, labels=names)[1]["label"].tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([10.0, 9.0, -1.0], ("-1", "9", "10")),
        (["1.0", "0.0", "2.0"], ("0", "1", "2")),
        (["1.0", "1.1", "beta"], ("1.0", "1.1", "beta")),
        ([True, False, True], ("false", "true")),
        (["b", "A", "c"], ("A", "b", "c")),
    ],
)
def test_whole_numbers_are_classes_by_size(
    tmp_path: Path, labels: list[Any], classes: tuple[str, ...]
) -> None:
    write(tmp_path / "a.parquet", pd.DataFrame({"text": list("abcdef"), "label": labels * 2}))
    part = {"train": "a.parquet", "validation": "a.parquet", "text": "text"}
    assert read(tmp_path, **part)[0].labels == classes


def test_a_share_of_the_rows_is_stratified_and_drawn_from_a_seed(tmp_path: Path) -> None:
    labels = ["common"] * 80 + ["seldom"] * 20 + ["once"]
    frame = pd.DataFrame({"text": [f"row {i}" for i in range(101)], "label": labels})
    write(tmp_path / "a.csv", frame)
    part = {"data": "a.csv", "text": "text"}
    task, train, validation = read(tmp_path, **part, validation=0.2)
    assert task.labels == ("common", "once", "seldom")
    assert validation["label"].value_counts().to_dict() == {0: 16, 2: 4}
    assert train["label"].value_counts().to_dict() == {0: 64, 2: 16, 1: 1}
    assert sorted([*train["text"], *validation["text"]]) == sorted(frame["text"])
    again = read(tmp_path, **part, validation={"fraction": 0.2, "seed": 0})[2]
    other = read(tmp_path, **part, validation={"fraction": 0.2, "seed": 1})[2]
    assert again.equals(validation)
    assert not other.equals(validation)
    most = read(tmp_path, **part, validation=0.6)[1]
    assert most["label"].value_counts().to_dict() == {0: 32, 2: 8, 1: 1}  # the only one stays
    half, rest = read(tmp_path, **part, train=0.5, validation=0.2)[1:]
    assert half["label"].value_counts().to_dict() == {0: 40, 2: 10, 1: 1}
    assert not set(half["text"]) & set(rest["text"])
    assert rest.equals(validation)


def test_a_regression_has_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": list("abcdefghij"), "label": np.linspace(0, 4.5, 10)})
    write(tmp_path / "a.csv", frame)
    part = {"data": "a.csv", "text": "text", "validation": 0.3}
    for settings in ({"kind": "regression"}, {"metric": "spearman"}):
        task, train, validation = read(tmp_path, **part, **settings)
        assert task.num_labels == 1
        assert len(validation) == 3
        assert sorted([*train["label"], *validation["label"]]) == frame["label"].tolist()


@pytest.mark.parametrize("names", [("train.csv", "dev.tsv"), ("train.jsonl", "validation.parquet")])
def test_a_folder_of_files(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, text in zip(names, ("ab", "cd"), strict=True):
        write(tmp_path / name, pd.DataFrame({"text": list(text), "label": ["x", "y"]}))
    found = read(tmp_path.parent, data=tmp_path.name, text="text")
    assert [part["text"].tolist() for part in found[1:]] == [["a", "b"], ["c", "d"]]


def test_a_saved_data_set_keeps_the_order_of_its_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 1]}
    one = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "saved")
    task, train, _ = read(tmp_path, data="saved", text="text", validation="test")
    assert task.labels == ("pos", "neg")
    assert train["label"].tolist() == [0, 1, 1]
    one.to_parquet(tmp_path / "a.parquet")
    task = read(tmp_path, train="a.parquet", validation="a.parquet", text="text")[0]
    assert task.labels == ("pos", "neg")
    with pytest.raises(ValueError, match="expected a split 'validation'; found train, test"):
        read(tmp_path, data="saved", text="text")


def test_a_pair_is_two_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"q": ["a", "b"], "a": ["", "d"], "label": [0, 1]})
    write(tmp_path / "a.jsonl", frame)
    task, train, _ = read(tmp_path, train="a.jsonl", validation="a.jsonl", text=["q", "a"])
    assert train[list(task.text)].to_numpy().tolist() == [["a", ""], ["b", "d"]]


GOOD = "text,label\na,x\nb,y\nc,x\nd,y\n"
BOMBS = {
    "columns": ("Text,label\na,x\n", "no column 'text' among 'Text', 'label'"),
    "columns twice": ("text,text,label\na,b,x\n", "2 columns 'text' among"),
    "empty": ("", "found an empty file"),
    "header alone": ("text,label\n", "expected rows; found none"),
    "one class": ("text,label\na,x\nb,x\n", "expected at least two classes"),
    "no label": ("text,label\na,x\nb,\n", "row 2: expected a label; found none: leave out"),
    "label nan": ("text,label\na,1\nb,NaN\n", "row 2: expected a label; found 'NaN': leave out"),
    "no text": ("text,label\na,x\n  ,y\n", "row 2: expected text in 'text'; found none"),
    "short row": ("text,label\na,x\nb\n", "row 2: expected a label"),
    "long row": ("text,label\na,x\nb,y,z\n", "line 3: expected as many fields as its first line"),
    "open quote": ('text,label\nb,y\n"a,x\nb,y\n', "line 3: expected whole fields; its quotation"),
    "numbers": ("text,label\na,0.5\nb,1.5\n", 'say kind = "regression"'),
    "blanks": ("text,label\na,x\nb,x \n", "labels 'x' and 'x ' differ by case, blanks or zeros"),
    "a text as label": (f"text,label\na,x\nb,{'y' * 300}\n", "200 characters at most; found 'yyy"),
    "a long header": (f"text,{'l' * 200_000}\na,x\n", "found no column 'label' among 'text', 'lll"),
    "every row": (
        "text,label\n" + "".join(f"a,x{i}\n" for i in range(99)),
        "found 99 in 99 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_cannot_be_trained_on_is_one_line(tmp_path: Path, bomb: str) -> None:
    content, says = BOMBS[bomb]
    (tmp_path / "good.csv").write_text(GOOD)
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(ValueError, match=r"\[task\.mine\] .*bad\.csv: ") as error:
        read(tmp_path, train="bad.csv", validation="good.csv", text="text")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD.encode("utf-16-le"), "a zero byte at 1 (UTF-16 without a byte order mark?)"),
        ("text,label\né,x\n".encode("latin-1"), r"expected UTF-8; found b'\xe9' at byte 11"),
    ],
)
def test_other_encodings_are_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match="Save it as UTF-8") as error:
        read_table(tmp_path / "a.csv")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "b", "label": null}', "row 2: expected a label; found none"),
        ('{"text": null, "label": "x"}', "row 2: expected text in 'text'; found none"),
        ('{"text": ["b"], "label": "x"}', "row 2: expected text in 'text'; found a list, ['b']"),
        ('{"text": "b", "label": ["x"]}', "row 2: expected a label; found a list"),
        (
            '{"text": "b", "text": "c", "label": "x"}',
            "line 2: expected every name once; found 'text' twice",
        ),
        ('["b", "x"]', "line 2: expected a JSON object; found"),
        ('{"text": "\\ud800", "label": "x"}', "row 2: expected text in 'text'; found half of a"),
        ('{"text": ', "line 2: expected a JSON object; Expecting value"),
        ('{"a":' * 10_000, "recursion"),
    ],
)
def test_json_lines_that_are_none(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "label": "y"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl") as error:
        read(tmp_path, data="a.jsonl", text="text", validation=0.5)
    assert says in str(error.value)


def test_a_million_classes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": "a", "label": np.arange(30_000) % 10_001})
    write(tmp_path / "a.parquet", frame)
    with pytest.raises(ValueError, match="found 10001 in 30000 rows"):
        read(tmp_path, train="a.parquet", validation="a.parquet", text="text")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": "none.csv", "validation": 0.2}, "found no "),
        ({"data": "../none", "validation": 0.2}, "found no "),
        ({"data": "a.xlsx", "validation": 0.2}, "expected a file named .csv, .tsv"),
        ({"data": "a.csv"}, "validation: expected a file, or a share of the rows of a.csv"),
        ({"data": "a.csv", "validation": "b.csv"}, "expected shares of the rows of a.csv"),
        ({"data": "a.csv", "validation": 0.001}, "expected rows to validate on; found none"),
        ({"train": "a.csv", "validation": "none.csv"}, "expected a file; found none"),
        (
            {"train": "a.csv", "validation": "c.csv"},
            "c.csv: row 1: expected one of the labels x, y; found 'z'",
        ),
        ({"train": "a.csv", "validation": "a.csv", "labels": ["x", "z"]}, "labels x, z; found 'y'"),
        ({"train": "c.csv", "validation": "c.csv", "metric": "f1"}, "found 3. Type f1_macro"),
        ({"train": "a.csv", "validation": "a.csv", "kind": "regression"}, "finite number"),
    ],
)
def test_what_a_task_asks_for_and_is_not_there(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "a.xlsx").write_text(GOOD)
    (tmp_path / "c.csv").write_text("text,label\na,z\nb,y\nc,x\n")
    with pytest.raises((ValueError, FileNotFoundError), match=r"\[task\.mine\] ") as error:
        read(tmp_path, text="text", **settings)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_that_are_in_both_parts_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "b.csv").write_text("text,label\na,x\nnew,y\nd,x\n")
    lines = summary(*read(tmp_path, train="a.csv", validation="b.csv", text="text"))
    assert lines[0] == (
        "mine: 4 + 3 rows (train + validation), 2 classes: 0 = x: 2 + 2, 1 = y: 2 + 1; metric "
        "accuracy"
    )
    assert "2 of 3 validation rows have a text that is in train" in lines[1]


def test_ordered_categories_of_parquet_are_classes_in_their_order(tmp_path: Path) -> None:
    order = ["low", "mid", "high"]
    labels = pd.Categorical(["high", "low", "mid", "low"] * 3, categories=order, ordered=True)
    frame = pd.DataFrame({"text": list("abcdefghijkl"), "label": labels})
    part = {"train": "train.parquet", "validation": "other.parquet", "text": "text"}
    write(tmp_path / "train.parquet", frame)
    write(tmp_path / "other.parquet", frame.assign(label=frame["label"].cat.set_categories(
        ["mid", "low", "high"], ordered=True)))  # fmt: skip
    task, train, validation = read(tmp_path, **part)
    assert task.labels == tuple(order)
    assert train["label"].tolist() == validation["label"].tolist() == [2, 0, 1, 0] * 3
    assert read(tmp_path, **part, labels=["high", "low", "mid"])[1]["label"][0] == 0
    write(tmp_path / "train.parquet", frame.assign(label=labels.as_unordered()))
    assert read(tmp_path, **part)[0].labels == ("high", "low", "mid")
    write(tmp_path / "train.parquet", frame.assign(label=labels.set_categories(order[:2])))
    with pytest.raises(ValueError, match="row 1: expected a label; found none: leave out"):
        read(tmp_path, **part)


def test_a_folder_of_gzipped_files(tmp_path: Path) -> None:
    for name, rows in {"train": "abcd", "dev": "ef"}.items():
        text = "text,label\n" + "".join(f"{row},{'xy'[i % 2]}\n" for i, row in enumerate(rows))
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    task, train, validation = read(tmp_path, data=".", text="text")
    assert task.labels == ("x", "y")
    assert train["text"].tolist() + validation["text"].tolist() == list("abcdef")


def test_a_configuration_is_of_a_data_set_of_the_hub(tmp_path: Path) -> None:
    """Beside a file it was passed over."""
    write(tmp_path / "a.csv", pd.DataFrame({"text": list("abcd"), "label": list("xyxy")}))
    for data in ({"data": "a.csv"}, {"data": "."}, {"train": "a.csv", "validation": "a.csv"}):
        with pytest.raises(ValueError, match="config: expected data to be a hub id"):
            read(tmp_path, **({"validation": 0.5} | data), text="text", config="plain")
