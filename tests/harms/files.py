"""Harms to one file of a store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harms.ways import LOCAL, Harm, replaced, rotten, ways

TRIAL_FILES = (
    "trial.json",
    "metrics.jsonl",
    "spectra.parquet",
    "done.json",
    "best/adapter_model.safetensors",
    "best/adapter_config.json",
    "last/adapter_model.safetensors",
)


def trials(place: Path) -> list[Path]:
    return sorted((place / "trials").iterdir())


def entry(place: Path, event: str) -> tuple[Path, Path]:
    """The third entry of that kind (the last of fewer), and the first."""
    found = [
        path
        for path in sorted((place / "log").glob("*.json"))
        if json.loads(path.read_text())["event"] == event
    ]
    return found[:3][-1], found[0]


def harms() -> Iterator[Harm]:
    """All of them, by name."""
    yield from _of_trials()
    yield from _of_header_and_log()
    yield from _of_what_can_be_made_again()
    yield Harm("moved", _moved)
    yield Harm("copied without times", _copied)


def _of_trials() -> Iterator[Harm]:
    for name in TRIAL_FILES:
        for way in (*ways(name), rotten):

            def do(
                place: Path, other: Path, name: str = name, way: Callable[[Path, Path], None] = way
            ) -> None:
                one, another = trials(place)[1:3]
                way(one / name, another / name)

            told: dict[str, Any] = {"local": way in LOCAL, "unseen": way is rotten}
            yield Harm(f"trial's {name} {way.__name__}", do, again=1, **told)
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
    for way in (*ways("store.json"), rotten):
        yield Harm(
            f"store.json {way.__name__}",
            lambda p, o, w=way: w(p / "store.json", o / "store.json"),
            local=way in LOCAL,
        )
    yield Harm("store.json of a newer format", lambda p, o: _newer(p / "store.json"), refused=True)
    for event in ("claim", "commit", "forget"):  # the last one records edits
        for way in (*ways("entry.json"), rotten):
            yield Harm(
                f"log: {event} {way.__name__}",
                lambda p, o, e=event, w=way: w(*entry(p, e)),
                local=way in LOCAL,
            )
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
    for name, find in MADE_AGAIN.items():
        for way in (*ways(name), rotten):

            def do(
                place: Path,
                other: Path,
                find: Callable[[Path, Path], tuple[Path, Path]] = find,
                way: Callable[[Path, Path], None] = way,
            ) -> None:
                one, another = find(place, other)
                if not one.exists():  # caches that only some readers write
                    one.write_text('{"format": 1, "trials": {}, "tables": {}}\n')
                if not another.exists():
                    another = other / "comparison.json"
                way(one, another)

            yield Harm(f"{name} {way.__name__}", do, local=way in LOCAL)
    for name, key in (("verified", "trials"), ("packs/index", "tables")):
        for value in ("5", "[]", '"x"', "null", '{"1": 5}'):
            yield Harm(
                f"cache/{name}.json says {value}",
                lambda p, o, n=name, k=key, v=value: _say(p / f"cache/{n}.json", k, v),
            )
    yield Harm("cache/ deleted", lambda p, o: shutil.rmtree(p / "cache"))
    yield Harm("cache/ full of nothing", _cache_emptied)
    yield Harm("heartbeats of zero length", _heartbeats)
    yield Harm("work left behind", lambda p, o: (p / "work" / "1" / "trials").mkdir(parents=True))


def _both(name: str) -> Callable[[Path, Path], tuple[Path, Path]]:
    return lambda place, other: (place / name, other / name)


MADE_AGAIN: dict[str, Callable[[Path, Path], tuple[Path, Path]]] = {
    **{
        name: _both(name)
        for name in (
            "comparison.parquet", "comparison.json", "cache/store.json", "cache/log.jsonl",
            "cache/verified.json", "cache/packs/index.json",
        )
    },
    "a pack's table.parquet": lambda p, o: tuple(sorted((p / "cache/packs").glob("*.parquet"))[:2]),
}  # fmt: skip


def _say(path: Path, key: str, value: str) -> None:
    path.write_text(f'{{"format": 1, "{key}": {value}}}\n')


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
