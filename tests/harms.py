"""What can happen to a store: each harm to one file or folder of it, and all of them by name."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

TRIAL_FILES = (
    "trial.json",
    "metrics.jsonl",
    "spectra.parquet",
    "done.json",
    "best/adapter_model.safetensors",
    "best/adapter_config.json",
    "last/adapter_model.safetensors",
)


@dataclass(frozen=True)
class Harm:
    """``do`` harms the store in ``place``; ``other`` is a finished store of another study's
    data."""

    name: str
    do: Callable[[Path, Path], None]
    again: int = 0  # trials that must be trained again, at most: those that were harmed themselves
    refused: bool = False  # a newer rankscope wrote it: every command says so, and nothing changes


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
            key
            for key, value in said.items()
            if key != "format" and type(value) in (int, float, str)
        )
        said[key] = 7.5 if isinstance(said[key], float) else said[key] * 2
        new = (
            json.dumps(said, indent=1)
            if path.suffix == ".json"
            else "\n".join([json.dumps(said), *lines[1:]])
        )
        path.write_text(new + "\n")


WAYS = (emptied, cut, garbled, deleted, replaced, edited, foreign, linked)


def trials(place: Path) -> list[Path]:
    return sorted((place / "trials").iterdir())


def entry(place: Path, event: str) -> tuple[Path, Path]:
    """The third entry of that kind, and the first."""
    found = [
        path
        for path in sorted((place / "log").glob("*.json"))
        if json.loads(path.read_text())["event"] == event
    ]
    return found[2], found[0]


def harms() -> Iterator[Harm]:
    yield from _of_trials()
    yield from _of_header_and_log()
    yield from _of_what_can_be_made_again()
    yield Harm("moved", _moved)
    yield Harm("copied without times", _copied)


def _of_trials() -> Iterator[Harm]:
    for name in TRIAL_FILES:
        for way in WAYS:

            def do(
                place: Path, other: Path, name: str = name, way: Callable[[Path, Path], None] = way
            ) -> None:
                one, another = trials(place)[1:3]
                way(one / name, another / name)

            yield Harm(f"trial's {name} {way.__name__}", do, again=1)
    for name in ("best", "last"):
        yield Harm(
            f"trial's {name}/ deleted",
            lambda p, o, n=name: shutil.rmtree(trials(p)[1] / n),
            again=1,
        )
    yield Harm("trial deleted", lambda p, o: shutil.rmtree(trials(p)[1]), again=1)
    yield Harm(
        "trial a file",
        lambda p, o: (shutil.rmtree(t := trials(p)[1]), t.write_text("x"))[0],
        again=1,
    )
    yield Harm("trial a link to another", _trial_linked, again=1)
    yield Harm("trial from another store in its place", _trial_of_another, again=1)
    yield Harm("trial of another store beside", _trial_beside)
    yield Harm("trial without done.json beside", lambda p, o: (p / "trials" / ("0" * 16)).mkdir())
    yield Harm(
        "file in trials/", lambda p, o: (p / "trials" / "notes.txt").write_text("x") and None
    )
    yield Harm(
        "trial's done.json of a newer format",
        lambda p, o: _newer(trials(p)[1] / "done.json"),
        again=1,
    )


def _of_header_and_log() -> Iterator[Harm]:
    for way in WAYS:
        yield Harm(
            f"store.json {way.__name__}", lambda p, o, w=way: w(p / "store.json", o / "store.json")
        )
    yield Harm("store.json of a newer format", lambda p, o: _newer(p / "store.json"), refused=True)
    for event in ("claim", "commit"):
        for way in WAYS:
            yield Harm(f"log: {event} {way.__name__}", lambda p, o, e=event, w=way: w(*entry(p, e)))
    yield Harm("log: last entry deleted", lambda p, o: sorted((p / "log").iterdir())[-1].unlink())
    yield Harm(
        "log: another store's entry",
        lambda p, o: replaced(entry(p, "commit")[0], entry(o, "commit")[0]),
    )
    yield Harm("log: all deleted", lambda p, o: shutil.rmtree(p / "log"))
    yield Harm(
        "log: other files",
        lambda p, o: (p / "log" / "00000002 (copy).json").write_text("x") and None,
    )
    yield Harm(
        "log: an entry far ahead",
        lambda p, o: (p / "log" / "00000099.json").write_text("{}") and None,
    )
    yield Harm(
        "log: entry of a newer format", lambda p, o: _newer(entry(p, "commit")[0]), refused=True
    )


def _of_what_can_be_made_again() -> Iterator[Harm]:
    for way in WAYS:
        yield Harm(
            f"comparison.parquet {way.__name__}",
            lambda p, o, w=way: w(*_both(p, o, "comparison.parquet")),
        )
        yield Harm(
            f"comparison.json {way.__name__}",
            lambda p, o, w=way: w(*_both(p, o, "comparison.json")),
        )
        yield Harm(
            f"a pack's table {way.__name__}",
            lambda p, o, w=way: w(*sorted((p / "cache/packs").iterdir())[:2]),
        )
    yield Harm("cache/ deleted", lambda p, o: shutil.rmtree(p / "cache"))
    yield Harm("cache/ full of nothing", _cache_emptied)
    yield Harm("heartbeats of zero length", _heartbeats)
    yield Harm("work left behind", lambda p, o: (p / "work" / "1" / "trials").mkdir(parents=True))


def _both(place: Path, other: Path, name: str) -> tuple[Path, Path]:
    return place / name, other / name


def _trial_linked(place: Path, other: Path) -> None:
    one, another = trials(place)[1:3]
    shutil.rmtree(one)
    one.symlink_to(another)


def _trial_of_another(place: Path, other: Path) -> None:
    one = trials(place)[1]
    shutil.rmtree(one)
    shutil.copytree(other / "trials" / one.name, one)


def _trial_beside(place: Path, other: Path) -> None:
    extra = next(path for path in trials(other) if not (place / "trials" / path.name).exists())
    shutil.copytree(extra, place / "trials" / extra.name)


def _newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


def _cache_emptied(place: Path, other: Path) -> None:
    for path in (place / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def _heartbeats(place: Path, other: Path) -> None:
    (place / "beats").mkdir(exist_ok=True)
    for number in range(1, 6):
        (place / "beats" / f"{number}.json").write_bytes(b"")


def _moved(place: Path, other: Path) -> None:
    os.rename(place, place.with_name("elsewhere"))
    os.rename(place.with_name("elsewhere"), place)


def _copied(place: Path, other: Path) -> None:
    shutil.copytree(place, place.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(place)
    os.rename(place.with_name("copy"), place)
