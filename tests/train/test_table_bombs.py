"""Small files that stand for more than the memory holds: one line, and nothing is unpacked."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankscope.train.table_file import read_table


def of_one_text(path: Path, text: str, rows: int) -> Path:
    """A Parquet file whose text is stored once, read back as plain text."""
    indices = pa.array([0] * rows, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array([text]))
    table = pa.table({"text": column, "label": [0, 1] * (rows // 2)})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    return path


def test_a_parquet_file_of_one_long_text_many_times(tmp_path: Path) -> None:
    path = of_one_text(tmp_path / "bomb.parquet", "y" * 2_000_000, 1_000_000)
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"expected text that fits into memory; found 2e\+03 GB"):
        read_table(path)


def test_a_file_larger_than_the_memory_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "sparse.csv"
    path.touch()
    os.truncate(path, 2**42)  # no block of it on the disk
    with pytest.raises(ValueError, match=r"fits into memory; found 4\.4e\+03 GB"):
        read_table(path)


def test_text_that_is_stored_once_is_read_as_any_other(tmp_path: Path) -> None:
    frame = read_table(of_one_text(tmp_path / "small.parquet", "héllo", 6))
    assert frame["text"].tolist() == ["héllo"] * 6
    assert frame["label"].tolist() == [0, 1] * 3
    mixed = pa.table(
        {"text": ["a", None, "NA"], "wide": pa.array(["x", "y", None], pa.large_string())}
    )
    pq.write_table(mixed, tmp_path / "mixed.parquet")
    found = read_table(tmp_path / "mixed.parquet")
    assert found["text"].isna().tolist() == [False, True, False]
    assert found["text"].tolist()[2] == "NA"
    assert found["wide"].tolist()[:2] == ["x", "y"]


@pytest.mark.parametrize("line", ["x" * 10_000_001, "\t" * 10_000_001], ids=["field", "fields"])
@pytest.mark.parametrize("after", ["\na\t1\n", ""])
def test_a_line_longer_than_any_example(tmp_path: Path, line: str, after: str) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n" + "b\t0\n" * 1000 + line + after, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(ValueError, match="expected lines of at most 10000000 characters"):
        read_table(path)
    assert time.process_time() - start < 2


def test_a_long_file_of_ordinary_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n" + ("x" * 3_000_000 + "\t1\n") * 4, encoding="utf-8")
    assert len(read_table(path)) == 4


def test_text_of_a_dictionary_column_is_counted(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 400_000, pa.int32()), ["y" * 1000])
    pq.write_table(pa.table({"text": column, "label": [0, 1] * 200_000}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="at most 100 times the file's bytes; found 400000000"):
        read_table(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", ",".join(map(str, range(20_000))), "at most 10000 columns; found 20000"),
        (
            "x.jsonl",
            "".join(f'{{"k{i}": 1}}\n' for i in range(9000)),
            "objects with the same names",
        ),
    ],
)
def test_columns_that_no_table_has(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["one.csv", "one.txt", "one.jsonl"])
def test_a_line_without_an_end_is_not_taken_into_memory(tmp_path: Path, name: str) -> None:
    """Its first 44 MB are looked at, piece by piece."""
    path = tmp_path / name
    path.touch()
    os.truncate(path, 300_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected lines of at most 10000000 characters"):
            read_table(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
