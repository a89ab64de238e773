"""One file of rows -> a table of text columns: CSV, TSV, JSON lines, Parquet.

pandas and pyarrow do the reading, with their guesses switched off: "NA" and "007" stay text, which
is not a missing value, and the encoding is taken from the byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rankscope.system import free_memory

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
CLASS_NAMES = "class_names"  # in a frame's attrs: column -> names of its whole numbers
_IN_MEMORY = 8  # bytes for each byte of a file, at most, while it is read
_VALUE = 64  # bytes that a value takes beside its own
_LINE = 10_000_000  # characters: an example of a whole book has 2 million
_COLUMNS = 10_000
_EMPTY = 20  # cells of a table by values in its rows, before it is called one of unlike rows
_UNPACKED = 100  # bytes of Parquet's text by bytes of the file, above _UNPACKED_FREE
_UNPACKED_FREE = 2**28
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_table(path: Path) -> pd.DataFrame:
    """The rows of a file: text, or what JSON and Parquet have; a missing value is None or NaN.

    ``ValueError`` or ``OSError``, one line, for a file that is none of ``SUFFIXES``, is damaged, or
    is too large for the memory that is free.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file named {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file; found none")
    size, free = path.stat().st_size, free_memory()
    if size * _IN_MEMORY > free:
        raise ValueError(
            f"{path}: expected a file that fits into memory; found {size / 1e9:.3g} GB, with "
            f"{free / 1e9:.3g} GB free. Take a part of it"
        )
    try:
        if suffix == ".parquet":
            return _from_parquet(path)
        text = _decoded(path)
        if suffix in (".csv", ".tsv"):
            frame = from_text(text, separator="," if suffix == ".csv" else "\t")
        else:
            frame = _from_json(text)
    except (pa.ArrowException, csv.Error, ValueError, RecursionError, MemoryError) as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ")
        raise ValueError(f"{path}: {' '.join(reason.split())[:300]}") from None
    return frame


def _decoded(path: Path) -> str:
    _check_line_ends(path)
    raw = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8; found {raw[error.start : error.start + 1]!r} at byte {error.start}. "
            "Save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"expected text; found a zero byte at {text.index(chr(0))} (UTF-16 without a byte "
            "order mark?). Save it as UTF-8"
        )
    if not text.strip():
        raise ValueError("expected rows below a header; found an empty file")
    start = 0
    while len(text) - start > _LINE:  # finds one line end per so many characters
        if (end := text.rfind("\n", start, start + _LINE)) < 0:
            raise ValueError(f"expected lines of at most {_LINE} characters; found a longer one")
        start = end + 1
    return text


def _check_line_ends(path: Path) -> None:
    """``ValueError`` before the file is in memory; a character has at most four bytes."""
    since = 0
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            end = chunk.rfind(b"\n")
            since = since + len(chunk) if end < 0 else len(chunk) - end - 1
            if since > 4 * _LINE:
                raise ValueError(
                    f"expected lines of at most {_LINE} characters; found a longer one"
                )


def _check_columns(count: int) -> None:
    if count > _COLUMNS:
        raise ValueError(f"expected at most {_COLUMNS} columns; found {count}")


def from_text(text: str, *, separator: str, header: bool = True) -> pd.DataFrame:
    """Comma- or tab-separated text. Every value is text; a row that is too short lacks its last
    ones."""
    quoted = separator != "\t" or is_quoted(text)
    names = _first_record(text, separator, quoted)
    _check_columns(len(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        try:
            frame = pd.read_csv(
                io.StringIO(text, newline=""),
                sep=separator,
                header=0 if header else None,
                names=list(range(len(names))),
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
                dtype=str,
                keep_default_na=False,
                index_col=False,
            )
        except pd.errors.ParserWarning:
            raise ValueError(
                f"expected {len(names)} columns, as its first line has; found rows with more"
            ) from None
    if header:
        frame.columns = names
    return frame


def _first_record(text: str, separator: str, quoted: bool) -> list[str]:
    lines = io.StringIO(text, newline="")
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    for record in csv.reader(lines, delimiter=separator, quoting=quoting):
        if record:  # pandas skips blank lines
            return record
    raise ValueError("expected a header; found blank lines")


# Fields: quoted ones, in which two marks are one, and plain ones without any.
_WELL_QUOTED = re.compile(r'(?:(?:"(?:[^"]|"")*+"|[^"\t\r\n]*+)(?:[\t\r\n]|\Z))*+')


def is_quoted(text: str) -> bool:
    """Whether quotation marks in tab-separated text enclose fields, or are characters (GLUE's).

    They enclose fields if every one of them belongs to a whole quoted field: whoever writes quoted
    text quotes each field that holds a mark, and doubles the mark.
    """
    return '"' in text and _WELL_QUOTED.fullmatch(text) is not None


def _from_json(text: str) -> pd.DataFrame:
    """A list of objects, or one object a line."""
    if text.lstrip().startswith("["):
        found = json.loads(text, object_pairs_hook=_object)
        rows = list(enumerate(found, 1))
        what = "row"
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = [(n, _line(n, line)) for n, line in lines if line.strip()]
        what = "line"
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{what} {number}: expected a JSON object; found {json.dumps(row)[:40]}"
            )
    names = {name for _, row in rows for name in row}
    _check_columns(len(names))
    values = sum(len(row) for _, row in rows)
    if len(names) * len(rows) > max(_EMPTY * values, 10_000_000):
        raise ValueError(
            f"expected objects with the same names; found {len(names)} names in {len(rows)}"
        )
    return pd.DataFrame([row for _, row in rows], dtype=object)


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_object)
    except ValueError as error:
        raise ValueError(f"line {number}: expected a JSON object; {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected every name once; found {twice!r} twice")
    return found


def _from_parquet(path: Path) -> pd.DataFrame:
    with pq.ParquetFile(path) as file:
        plain = file.schema_arrow
    texts = [one.name for one in plain if _is_text(one.type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        held = file.metadata.num_rows * file.metadata.num_columns * _VALUE
        held += sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        _check_columns(file.metadata.num_columns)
        if held > (free := free_memory()):  # whatever its size on the disk
            raise ValueError(
                f"expected rows that fit into memory; found {file.metadata.num_rows} of "
                f"{file.metadata.num_columns} columns, with {free / 1e9:.3g} GB free"
            )
        table = file.read()
        if (held := sum(_expanded(table[name]) for name in texts)) > (free := free_memory()):
            raise ValueError(
                f"expected text that fits into memory; found {held / 1e9:.3g} GB of it, with "
                f"{free / 1e9:.3g} GB free"
            )
        if held > max(_UNPACKED_FREE, _UNPACKED * (size := path.stat().st_size)):
            raise ValueError(
                f"expected text of at most {_UNPACKED} times the file's bytes; found {held} of it "
                f"in a file of {size}"
            )
        frame = table.cast(plain).to_pandas()
        metadata = file.schema_arrow.metadata or {}
    described = json.loads(metadata.get(b"huggingface", b"{}"))
    frame.attrs[CLASS_NAMES] = class_names(described.get("info", {}).get("features", {}))
    return frame


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _expanded(column: pa.ChunkedArray) -> int:
    """The bytes of a column's text when each value is written out: a dictionary of one long text
    may stand for millions."""
    total = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            lengths = pc.binary_length(chunk.dictionary).cast(pa.int64()).take(chunk.indices)
        else:
            lengths = pc.binary_length(chunk).cast(pa.int64())
        total += pc.sum(lengths).as_py() or 0
    return total


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of the features of a ``datasets`` data set, as JSON has them."""
    return {
        name: [str(label) for label in feature["names"]]
        for name, feature in features.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    }
