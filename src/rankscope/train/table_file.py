"""One file of rows -> a table of text columns: CSV, TSV, JSON lines, Parquet, lines of text; all
but Parquet gzipped as well.

Nothing is guessed: "NA" and "007" stay text, which is not a missing value, and the encoding is
taken from the byte order mark.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rankscope.system import free_memory
from rankscope.train.delimited_text import LINE_END, LONGEST_LINE, check_columns, from_text
from rankscope.train.json_rows import from_json

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")
CLASS_NAMES = "class_names"  # in a frame's attrs: column -> names of its whole numbers
_IN_MEMORY = 8  # bytes for each byte of a file, at most, while it is read
_VALUE = 64  # bytes that a value takes beside its own
_GZIP = ".gz"
_UNPACKED = 100  # bytes of a packed file's text by bytes of the file, above _UNPACKED_FREE
_UNPACKED_FREE = 2**28
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# the first bytes of files that are not text, whatever their names
_PACKED = (
    (b"\x1f\x8b", "a gzip file: let its name end with .gz"),
    (b"PK\x03\x04", "a zip file or a spreadsheet: unpack it, or save its table as CSV"),
    (b"PAR1", "a Parquet file: name it .parquet"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet: save its table as CSV"),
)
_UNPACK = (_GZIP, ".zip", ".bz2", ".xz", ".zst")


def name_and_kind(path: Path) -> tuple[str, str]:
    """A file's name without its endings, and the one of ``SUFFIXES`` that it has, in small letters;
    "" for a file that is none of them."""
    name = path.name
    if name.lower().endswith(_GZIP) and not name.lower().endswith(".parquet" + _GZIP):
        name = name[: -len(_GZIP)]
    suffix = Path(name).suffix.lower()
    return Path(name).stem, suffix if suffix in SUFFIXES else ""


def read_table(path: Path) -> pd.DataFrame:
    """The rows of a file: text, or what JSON and Parquet have; a missing value is None or NaN.

    ``ValueError`` or ``OSError``, one line, for a file whose suffix is not in ``SUFFIXES``, that
    is damaged, or that is too large for the free memory.
    """
    suffix = name_and_kind(path)[1]
    if not suffix:
        packed = path.suffix.lower() in _UNPACK
        advice = "unpack it" if packed else "save its table as one of them"
        raise ValueError(
            f"{path}: expected a file named {', '.join(SUFFIXES)}, or gzipped text of them such as "
            f".csv.gz: {advice}"
        )
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
        text = _decoded(path, most=_most_text(path, free))
        if suffix == ".txt":
            return pd.DataFrame({"text": LINE_END.split(text)}, dtype=object)
        if suffix in (".csv", ".tsv"):
            return from_text(text, separator="," if suffix == ".csv" else "\t")
        return from_json(text)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file; {error}") from None
    except (pa.ArrowException, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:300]}") from None


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == _GZIP


def _most_text(path: Path, free: float) -> int:
    """The bytes that are read of a file of text: what is unpacked of a gzip file may be a thousand
    times as long."""
    size = path.stat().st_size
    return (
        min(int(free) // _IN_MEMORY, max(_UNPACKED_FREE, _UNPACKED * size))
        if _is_gzip(path)
        else size
    )


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if _is_gzip(path) else path.open("rb")


def _decoded(path: Path, *, most: int) -> str:
    _check_unread_lines(path, most)
    with _open(path) as file:
        raw = file.read()
    if what := next((what for mark, what in _PACKED if raw.startswith(mark)), None):
        raise ValueError(f"expected text; found {what}")
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
        raise ValueError("expected rows; found an empty file")
    if not text.lstrip().startswith("["):  # a list of JSON may be one line
        _check_line_ends(text)
    return text


def _check_unread_lines(path: Path, most: int) -> None:
    """What ``_check_line_ends`` finds in text, before the file is in memory, by bytes: of a
    character there are at most four. ``ValueError`` for more than ``most`` bytes, too."""
    since, read, is_list = 0, 0, False
    with _open(path) as file:
        while chunk := file.read(2**22):
            if not read and chunk.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"["):
                is_list = True
            read += len(chunk)
            if _is_gzip(path) and read > most:
                raise ValueError(
                    f"expected at most {most} bytes of text in a gzip file of "
                    f"{path.stat().st_size}; found more. Unpack it, or take a part of it"
                )
            if is_list:
                if not _is_gzip(path):
                    return
                continue
            end = max(chunk.rfind(mark) for mark in (b"\n", b"\r"))
            since = since + len(chunk) if end < 0 else len(chunk) - end - 1
            if since > 4 * LONGEST_LINE:
                raise ValueError(
                    f"expected lines of at most {LONGEST_LINE} characters; found a longer one"
                )


def _check_line_ends(text: str) -> None:
    start = 0
    while len(text) - start > LONGEST_LINE:  # finds one line end per so many characters
        end = max(text.rfind(mark, start, start + LONGEST_LINE) for mark in "\n\r")
        if end < 0:
            raise ValueError(
                f"expected lines of at most {LONGEST_LINE} characters; found a longer one"
            )
        start = end + 1


def _from_parquet(path: Path) -> pd.DataFrame:
    with pq.ParquetFile(path) as file:
        plain = file.schema_arrow
    texts = [one.name for one in plain if _is_text(one.type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        held = file.metadata.num_rows * file.metadata.num_columns * _VALUE
        held += sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        check_columns(file.metadata.num_columns)
        if (names := pd.Index(plain.names)).has_duplicates:
            twice = str(names[names.duplicated()][0])
            raise ValueError(f"expected every column once; found {twice!r} twice")
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
        # pandas' own metadata would hide a column that it calls the index
        frame = table.cast(plain).to_pandas(ignore_metadata=True)
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
    """Class names by column, from the features of a ``datasets`` data set in JSON."""
    return {
        name: [str(label) for label in feature["names"]]
        for name, feature in features.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    }
