"""Ways to harm one file."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Harm:
    """``do`` harms the store in ``place``; ``other`` is a finished store of another study's
    data."""

    name: str
    do: Callable[[Path, Path], None]
    again: int = 0  # trials that must be trained again, at most: those that were harmed themselves
    refused: bool = False  # a newer rankscope wrote it: every command says so, and nothing changes
    unseen: bool = False  # size and time are as they were: only ``check`` reads the file
    local: bool = False  # what no bucket knows: links, pipes, owners, times
    patience: float | None = None  # seconds without a heartbeat, where one must be waited for
    training: bool = False  # what is left looks like a store in training, and is read as one


def emptied(path: Path, another: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path, another: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path: Path, another: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def deleted(path: Path, another: Path) -> None:
    path.unlink()


def replaced(path: Path, another: Path) -> None:
    """By the same file of another trial, entry or store."""
    path.write_bytes(another.read_bytes())


def linked(path: Path, another: Path) -> None:
    path.unlink()
    path.symlink_to(another)


def foreign(path: Path, another: Path) -> None:
    """By JSON without a seal, in which a key of ours holds another kind of thing."""
    path.write_text('{"format": 1, "id": 1e400, "event": "commit", "study": []}\n')


def edited(path: Path, another: Path) -> None:
    """A value in it is another one, and the file as good as before."""
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
        column = next(c for c in frame.columns if frame[c].dtype.kind == "f")
        frame.assign(**{column: frame[column] + 1.0}).to_parquet(path, index=False)
    elif path.suffix == ".safetensors":
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        lines = path.read_text().splitlines()
        said = json.loads(path.read_text() if path.suffix == ".json" else lines[0])
        key = next(
            (
                key
                for key, value in said.items()
                if key != "format" and type(value) in (int, float, str)
            ),
            "more",  # of a cache that holds nothing else
        )
        said.setdefault(key, 1)
        said[key] = 7.5 if isinstance(said[key], float) else said[key] * 2
        new = (
            json.dumps(said, indent=1)
            if path.suffix == ".json"
            else "\n".join([json.dumps(said), *lines[1:]])
        )
        path.write_text(new + "\n")


def looped(path: Path, another: Path) -> None:
    """A link to itself: whoever opens it is told of too many links."""
    path.unlink()
    path.symlink_to(path.name)


def piped(path: Path, another: Path) -> None:
    """A pipe that nobody writes: whoever opens it to read waits for ever."""
    path.unlink()
    os.mkfifo(path)


def made_a_folder(path: Path, another: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def rotten(path: Path, another: Path) -> None:
    """One bit is another, and size and time are as they were: what an old disk does."""
    seen, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def marked(path: Path, another: Path) -> None:
    """As editors of Windows save it: a byte order mark, and lines that end in CR LF."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))


def recoded(path: Path, another: Path) -> None:
    path.write_text(path.read_text(), encoding="utf-16")


def doubled(path: Path, another: Path) -> None:
    """A key twice, of which JSON readers take one or the other."""
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if re.match(r'\s*\{?\s*"\w+": [^{\[]', line))
    key, _, value = lines[at].strip().lstrip("{").rstrip("},").split(", ")[0].partition(": ")
    other = "7" if value != "7" else "8"
    brace = "{" if lines[at].startswith("{") else ""
    lines[at] = f"{brace}{key}: {other}, {lines[at].removeprefix('{')}"
    path.write_text("\n".join(lines) + "\n")


WAYS = (
    emptied, cut, garbled, deleted, replaced, edited, foreign, linked, looped, piped, made_a_folder,
)  # fmt: skip
LOCAL = (linked, looped, piped, rotten)  # no bucket knows these
WAYS_OF_TEXT = (marked, recoded, doubled)


def ways(name: str) -> tuple[Callable[[Path, Path], None], ...]:
    """Those that a file of that name can be harmed in."""
    return WAYS + WAYS_OF_TEXT if name.endswith((".json", ".jsonl")) else WAYS
