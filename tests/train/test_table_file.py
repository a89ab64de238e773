"""Files as people's programs write them: the rows as they stand there, or one line that says what
to do."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankscope.train.table_file import name_and_kind, read_table

FILES: dict[str, tuple[str, bytes, list[list[str | None]]]] = {
    "a spreadsheet in Europe": (
        "a.csv",
        'text;label\r\n"Ja; nein";x\r\nZürich, €;"1,5"\r\n'.encode("utf-8-sig"),
        [["Ja; nein", "x"], ["Zürich, €", "1,5"]],
    ),
    "a spreadsheet as UTF-16": (
        "a.csv",
        'text\tlabel\r\n"a ""b"""\tx\r\n'.encode("utf-16"),
        [['a "b"', "x"]],
    ),
    "an old Mac": ("a.csv", b'text,label\r"a\rb",x\rc,y\r', [["a\rb", "x"], ["c", "y"]]),
    "line ends of all kinds": (
        "a.csv",
        b'text,label\r\na,x\nb,y\r"c\r\nd",z',
        [["a", "x"], ["b", "y"], ["c\r\nd", "z"]],
    ),
    "blank lines and short rows": (
        "a.csv",
        b"text,label\n\n   \na\n,y\n",
        [["a", None], ["", "y"]],
    ),
    "marks inside a field": ("a.csv", b'text,label\nhe said "no",x\n', [['he said "no"', "x"]]),
    "a long text": ("a.csv", b"text,label\n" + b"y" * 200_000 + b",x\n", [["y" * 200_000, "x"]]),
    "lines of JSON, old Mac": (
        "a.jsonl",
        '{"text": "a\u2028b", "label": "x"}\r{"text": "c", "label": "y"}\r'.encode(),
        [["a\u2028b", "x"], ["c", "y"]],
    ),
    "a list of JSON": (
        "a.jsonl",
        b'[\n {"text": "a", "label": "x"},\n {"text": "b", "label": "y"}\n]\n',
        [["a", "x"], ["b", "y"]],
    ),
    "one object over lines": (
        "a.json",
        b'{\n "text": "a",\n "label": "x"\n}\n',
        [["a", "x"]],
    ),
    "lines of text": ("a.txt", "one\r\n\r\n two 😀\n".encode(), [["one"], [""], [" two 😀"], [""]]),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_rows_are_as_they_stand_in_the_file(tmp_path: Path, file: str) -> None:
    name, content, rows = FILES[file]
    (tmp_path / name).write_bytes(content)
    assert read_table(tmp_path / name).to_numpy().tolist() == rows


@pytest.mark.parametrize("file", [name for name, (path, *_) in FILES.items() if "parq" not in path])
def test_gzipped_text_is_read_as_what_it_holds(tmp_path: Path, file: str) -> None:
    name, content, rows = FILES[file]
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert read_table(tmp_path / f"{name}.gz").to_numpy().tolist() == rows
    assert name_and_kind(tmp_path / f"{name}.GZ") == name_and_kind(tmp_path / name)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_random_cells_are_those_that_pandas_reads(tmp_path: Path, separator: str) -> None:
    draw = random.Random(3)
    marks = ['"', ",", ";", "\t", "\n", "\r\n", "'", "\\", " ", "é", "a", "NA", ""]
    rows = [["".join(draw.choices(marks, k=draw.randrange(6))) for _ in "xyz"] for _ in range(300)]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator).writerows([["x", "y", "z"], *rows])
    path = tmp_path / "a.csv"
    path.write_bytes(out.getvalue().encode())
    settings = {"sep": separator, "dtype": str, "keep_default_na": False}
    with path.open(newline="", encoding="utf-8") as file:
        expected = pd.read_csv(file, **settings)
    assert read_table(path).to_numpy().tolist() == expected.to_numpy().tolist()


def test_a_list_of_json_may_be_one_long_line(tmp_path: Path) -> None:
    text = "x" * 3_000_000
    rows = ", ".join(f'{{"text": "{text}", "label": {i}}}' for i in range(4))
    (tmp_path / "a.json").write_text(f"[{rows}]")
    assert read_table(tmp_path / "a.json")["label"].tolist() == [0, 1, 2, 3]


BAD: dict[str, tuple[str, bytes, str]] = {
    "marks after a backslash": (
        "a.csv", b'text,label\n"a \\"b\\" c",x\n', "line 2: expected whole fields; a field goes on",
    ),
    "a comma without marks": (
        "a.csv", b"text\nHello, world\n",
        "line 2: expected as many fields as its first line has, 1; found 2 in 'Hello, world': a "
        'text with a comma stands in "quotation marks"',
    ),
    "gzip": (
        "a.csv", gzip.compress(b"text,label\n"), "found a gzip file: let its name end with .gz",
    ),
    "gzipped Parquet": ("a.parquet.gz", b"", "expected a file named .csv, .tsv"),
    "gzip by its name alone": ("a.csv.gz", b"text,label\na,b\n", "Not a gzipped file"),
    "half of a gzip file": ("a.csv.gz", gzip.compress(b"text\n" * 99)[:-9], "ended before"),
    "a gzip file that is damaged": (
        "a.csv.gz", gzip.compress(b"text\n")[:-8] + b"\0" * 8, "whole gzip file; CRC check failed",
    ),
    "a packed line without an end": (
        "a.csv.gz", gzip.compress(b"text\n" + b"a" * 45_000_000, 1), "lines of at most",
    ),
    "a bomb": (
        "a.jsonl.gz", gzip.compress((b"[" + b" \n" * 2**20) * 2**7 + b" " * 2**23, 1),
        "expected at most 268435456 bytes of text in a gzip file of ",
    ),
    "a spreadsheet": ("a.csv", b"PK\x03\x04\x14", "a zip file or a spreadsheet"),
    "Parquet by another name": ("a.csv", b"PAR1\x15", "a Parquet file: name it .parquet"),
    "a comma behind each line": (
        "a.jsonl", b'{"text": "a"},\n{"text": "b"},\n',
        "line 1: expected a JSON object; Extra data at character 14, ','",
    ),
    "columns of JSON": (
        "a.json", b'{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}',
        "expected a list of objects, or one object a line; found one object with 'text', 'label'",
    ),
    "rows in an object": (
        "a.json", b'{\n "version": {},\n "data": [{"text": "a"}]\n}',
        "one object with 'version', 'data'",
    ),
    "a broken list": (
        "a.json", b'[{"text": "a"},\n {"text": "b"\n',
        "expected a list of JSON objects; Expecting ',' delimiter at its end",
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", BAD)
def test_what_is_no_table_is_one_line(tmp_path: Path, file: str) -> None:
    name, content, says = BAD[file]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="expected") as error:
        read_table(tmp_path / name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_that_pandas_calls_the_index_is_a_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": pd.Categorical(["y", "x"])})
    frame.set_index("text").to_parquet(tmp_path / "a.parquet")
    found = read_table(tmp_path / "a.parquet")
    assert found["text"].tolist() == ["a", "b"]
    assert found["label"].tolist() == ["y", "x"]


def test_a_column_twice_in_parquet_is_one_line(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.table(columns, names=["text", "label", "label"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="every column once; found 'label' twice"):
        read_table(tmp_path / "a.parquet")
