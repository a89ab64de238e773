"""Harms that look right: sealed again after an edit, of other types, names that are nearly
numbers."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from harms.files import entry, trials
from harms.ways import Harm
from rankscope.store.files import dumps

Change = Callable[[dict[str, Any]], Any]


def harms() -> Iterator[Harm]:
    yield from _of_trials()
    yield from _of_header_and_log()
    yield from _of_what_can_be_made_again()
    yield from _of_names()


def _sealed(path: Path, change: Change) -> None:
    """Changes what is in it, and seals it as we would."""
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    change(content)
    path.write_bytes(dumps(content))


def _of_trials() -> Iterator[Harm]:
    for value in (True, "1", 1.0, 0, -1, None, 10**400):

        def do(place: Path, other: Path, value: Any = value) -> None:
            _sealed(trials(place)[1] / "done.json", lambda c: c.update(format=value))

        yield Harm(f"trial's done.json of format {value!r:.9}", do, again=1)
    for name, key, value in (
        ("done.json", "best", 0.999), ("done.json", "status", "diverged"),
        ("done.json", "claim", 10**30),
        ("done.json", "files", []), ("trial.json", "id", "0" * 16), ("trial.json", "trial", {}),
        ("trial.json", "machine", None),
    ):  # fmt: skip

        def say(place: Path, other: Path, name: str = name, key: str = key, v: Any = value) -> None:
            _sealed(trials(place)[1] / name, lambda c: c.update({key: v}))

        yield Harm(f"trial's {name} sealed with {key} = {value!r:.12}", say, again=1)
    for text in ('{"step": NaN}', '{"step": 1, "accuracy": Infinity}', "[" * 100_000, "1", "null"):

        def line(place: Path, other: Path, text: str = text) -> None:
            (trials(place)[1] / "metrics.jsonl").write_text(text + "\n")

        yield Harm(f"trial's metrics.jsonl says {text:.20}", line, again=1)
    for how, edit in TABLES.items():

        def write(place: Path, other: Path, edit: Any = edit) -> None:
            path = trials(place)[1] / "spectra.parquet"
            edit(pd.read_parquet(path)).to_parquet(path, index=False)

        yield Harm(f"trial's spectra.parquet {how}", write, again=1)
    yield Harm("trial's metrics.jsonl a socket", _socket, again=1, local=True)
    yield Harm("trial's best/ a link to itself", _best_looped, again=1, local=True)
    yield Harm("trial's spectra.parquet of 10 GB", _sparse, again=1, local=True)


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "in another order": lambda t: t[list(t.columns)[::-1]],
    "of other types": lambda t: t.astype(str),
    "without a row": lambda t: t.head(0),
    "of 50 columns more": lambda t: t.assign(**{f"c{i}": 1.0 for i in range(50)}),
}


def _of_header_and_log() -> Iterator[Harm]:
    for key, value in (
        ("trials", "abc"), ("trials", [["x"]]), ("trials", {}), ("claim", 10**30), ("claim", -1),
        ("claim", True), ("event", []), ("results", {"x": 5}), ("files", {"x": {"y": [-1, 2]}}),
        ("at", "2999-01-01T00:00:00Z"), ("at", []), ("table", [10**30, 5]), ("number", 10**30),
        ("beside", 7),
    ):  # fmt: skip

        def do(place: Path, other: Path, key: str = key, value: Any = value) -> None:
            _sealed(entry(place, "commit")[0], lambda c: c.update({key: value}))

        yield Harm(f"log: a commit sealed with {key} = {value!r:.14}", do)
    for key, value in (("worker", 5), ("boot", None), ("beside", [7, None]), ("beside", "abc")):

        def claim(place: Path, other: Path, key: str = key, value: Any = value) -> None:
            _sealed(entry(place, "claim")[0], lambda c: c.update({key: value}))

        yield Harm(f"log: a claim sealed with {key} = {value!r:.14}", claim)
    yield Harm("log: emptied of all", lambda p, o: [x.unlink() for x in (p / "log").iterdir()][:0])
    for key, value in (("largest_rank", {"m": 1}), ("study", {}), ("text", "x = ["), ("id", 5),
                       ("earlier", [5]), ("fingerprints", {"data/RTE": 5})):  # fmt: skip

        def head(place: Path, other: Path, key: str = key, value: Any = value) -> None:
            _sealed(place / "store.json", lambda c: c.update({key: value}))

        yield Harm(f"store.json sealed with {key} = {value!r:.14}", head)


def _of_what_can_be_made_again() -> Iterator[Harm]:
    for how, edit in TABLES.items():

        def edited(place: Path, other: Path, edit: Any = edit) -> None:
            path = next((place / "interventions").rglob("*.parquet"))
            edit(pd.read_parquet(path)).to_parquet(path, index=False)

        yield Harm(f"an edited trial's .parquet {how}", edited)
    yield Harm("beats from the future", _beats)


def _of_names() -> Iterator[Harm]:
    for name in ("work", "beats", "log", "trials", "harmed"):
        for odd in ("²", "１", "9" * 30, "-1", "00000000", "n" * 200, "a b%20\n", "¼"):

            def do(place: Path, other: Path, name: str = name, odd: str = odd) -> None:
                (place / name).mkdir(exist_ok=True)
                if name in ("work", "trials", "harmed"):
                    (place / name / odd / "trials").mkdir(parents=True)
                else:
                    (place / name / f"{odd}.json").write_text("{}")

            yield Harm(f"{name}/ with {odd!r:.12}", do, local="\n" in odd)


def _socket(place: Path, other: Path) -> None:
    path = trials(place)[1] / "metrics.jsonl"
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def _best_looped(place: Path, other: Path) -> None:
    best = trials(place)[1] / "best"
    best.rename(best.with_name("away"))
    best.symlink_to("best")


def _sparse(place: Path, other: Path) -> None:
    with (trials(place)[1] / "spectra.parquet").open("r+b") as file:
        file.truncate(10**10)


def _beats(place: Path, other: Path) -> None:
    (place / "beats").mkdir(exist_ok=True)
    content = {"count": 10**30, "steps": -5, "at": "2999-01-01T00:00:00Z"}
    for number in range(1, 6):
        (place / "beats" / f"{number}.json").write_bytes(dumps(content))
        os.utime(place / "beats" / f"{number}.json", (4e9, 4e9))
