"""Harms of copying, merging and restoring: files that changed places, entries twice or in another
order, a store that was copied in part, two stores with one id."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from harms.files import TRIAL_FILES, entry
from harms.ways import Harm
from rankscope.store.files import dumps, loads
from rankscope.store.store import Store


def trials(place: Path) -> list[Path]:
    return sorted((place / "trials").iterdir())


def pack(place: Path) -> tuple[Path, Path]:
    """Two trials that were trained together."""
    store = Store(place)
    store.log.refresh()
    together = next(ids for ids in sorted(store.log.together.values()) if len(ids) > 1)
    return place / "trials" / together[0], place / "trials" / together[1]


def harms() -> Iterator[Harm]:
    for name in TRIAL_FILES:
        yield Harm(f"{name} of two trials of a pack swapped", _swapped(name), again=2)
    yield Harm("two trials of a pack swapped", lambda p, o: _swap(*pack(p)), again=2)
    yield Harm("weights of best/ and last/ swapped", _best_and_last, again=1)
    yield from _of_files()
    yield from _of_the_log()
    yield from _of_copies()


def _swapped(name: str) -> Callable[[Path, Path], None]:
    def do(place: Path, other: Path) -> None:
        one, another = pack(place)
        _swap(one / name, another / name)

    return do


def _swap(one: Path, another: Path) -> None:
    away = one.with_name("away")
    one.rename(away)
    another.rename(one)
    away.rename(another)


def _best_and_last(place: Path, other: Path) -> None:
    one = trials(place)[1]
    _swap(one / "best" / "adapter_model.safetensors", one / "last" / "adapter_model.safetensors")


def _of_files() -> Iterator[Harm]:
    for name in ("metrics.jsonl", "spectra.parquet", "done.json"):

        def sparse(place: Path, other: Path, name: str = name) -> None:
            path = trials(place)[1] / name
            size = path.stat().st_size
            os.truncate(path, 0)
            os.truncate(path, size)

        yield Harm(f"trial's {name} a hole of its size", sparse, again=1, local=True)
    yield Harm("hard links beside all files", _hard_linked, local=True)
    yield Harm("one file is two trials'", _shared, again=1, local=True)
    for name in (
        "a" * 255,
        "é" * 120,
        unicodedata.normalize("NFD", "é") * 80,
        " ",
        "CON",
        "nul.json",
    ):
        yield Harm(
            f"beside: {name[:12]!r}",
            lambda p, o, n=name: (p / n).write_text("x") and None,
            local=True,
        )
        yield Harm(
            f"trials/ with a folder {name[:12]!r}",
            lambda p, o, n=name: (p / "trials" / n).mkdir(),
            local=True,
        )
    for folder in ("trials", "log", "cache"):

        def folded(place: Path, other: Path, folder: str = folder) -> None:
            """As two folders that a disk without case would take for one."""
            shutil.copytree(place / folder, place / folder.upper())

        yield Harm(f"{folder}/ twice, once in capitals", folded)
    yield Harm("a trial's folder in capitals beside it", _folded_trial, local=True)
    yield Harm(
        "store.json in capitals beside it",
        lambda p, o: shutil.copy(p / "store.json", p / "STORE.JSON") and None,
    )
    yield Harm("all files executable, folders sticky", _modes, local=True)


def _hard_linked(place: Path, other: Path) -> None:
    away = place.with_name("hard links")
    shutil.rmtree(away, ignore_errors=True)
    shutil.copytree(place, away, copy_function=os.link)


def _shared(place: Path, other: Path) -> None:
    one, another = trials(place)[1:3]
    (one / "done.json").unlink()
    os.link(another / "done.json", one / "done.json")


def _folded_trial(place: Path, other: Path) -> None:
    one = trials(place)[1]
    shutil.copytree(one, one.with_name(one.name.upper() + "X"))


def _modes(place: Path, other: Path) -> None:
    for path in place.rglob("*"):
        path.chmod(0o1777)


# the log


def entries(place: Path) -> list[Path]:
    return sorted((place / "log").glob("*.json"))


def _of_the_log() -> Iterator[Harm]:
    for event in ("claim", "commit"):

        def twice(place: Path, other: Path, event: str = event) -> None:
            last = entries(place)[-1]
            following = last.with_name(f"{int(last.stem) + 1:08d}.json")
            following.write_bytes(entry(place, event)[0].read_bytes())

        yield Harm(f"log: a {event} once more at the end", twice)

        def renumbered(place: Path, other: Path, event: str = event) -> None:
            number = int(entries(place)[-1].stem) + 1
            content = loads(entry(place, event)[0].read_bytes(), "x")
            del content["format"]
            path = place / "log" / f"{number:08d}.json"
            path.write_bytes(dumps(content | {"number": number}))

        yield Harm(f"log: a {event} once more, with its number and seal", renumbered, patience=0.5)
    yield Harm("log: all entries once more at the end", _doubled)
    yield Harm("log: two entries swapped", lambda p, o: _swap(*entry(p, "commit")))
    yield Harm("log: entries in the opposite order", _reversed)
    yield Harm("log: all one further", _shifted)
    yield Harm("log: of the future, sealed", _of_the_future)
    yield Harm("log: 30 numbers left out before the last", _gap)
    yield Harm("log: the last three deleted, with the snapshot", _tail_lost)
    yield Harm("log: deleted with the snapshot", _log_lost)


def _doubled(place: Path, other: Path) -> None:
    found = entries(place)
    for i, path in enumerate(found, start=len(found) + 1):
        shutil.copy(path, path.with_name(f"{i:08d}.json"))


def _reversed(place: Path, other: Path) -> None:
    found = entries(place)
    said = [path.read_bytes() for path in found]
    for path, data in zip(found, reversed(said), strict=True):
        path.write_bytes(data)


def _shifted(place: Path, other: Path) -> None:
    for path in reversed(entries(place)):
        path.rename(path.with_name(f"{int(path.stem) + 1:08d}.json"))


def _of_the_future(place: Path, other: Path) -> None:
    for path in entries(place):
        content = loads(path.read_bytes(), "x")
        del content["format"]
        path.write_bytes(dumps(content | {"at": "2999-01-01T00:00:00Z"}))
        os.utime(path, (32e9, 32e9))


def _gap(place: Path, other: Path) -> None:
    last = entries(place)[-1]
    last.rename(last.with_name(f"{int(last.stem) + 30:08d}.json"))


def _tail_lost(place: Path, other: Path) -> None:
    for path in entries(place)[-3:]:
        path.unlink()
    (place / "cache" / "log.jsonl").unlink(missing_ok=True)


def _log_lost(place: Path, other: Path) -> None:
    shutil.rmtree(place / "log")
    (place / "cache" / "log.jsonl").unlink(missing_ok=True)


# copies


def _of_copies() -> Iterator[Harm]:
    for part in range(1, 8):
        yield Harm(
            f"copied in part, {part} of 8, in the order of names", _copied(part, False), again=8
        )
        yield Harm(f"copied in part, {part} of 8, in another order", _copied(part, True), again=8)
    yield Harm("an interrupted rsync's drafts beside the files", _drafts, local=True)
    yield Harm("half of a file, under its own name (rsync --inplace)", _inplace, again=1)
    yield Harm("a copy that went on, copied back over it", _went_on_over)
    yield Harm("a copy that went on, its log copied back", _went_on_log)
    yield Harm("restored from an older copy, newer trials left", _restored, again=4)
    yield Harm("trials of an older copy, the log newer", _old_trials, again=6)
    for value in (0, -1, None, "1", 1.0, True):

        def older(place: Path, other: Path, value: object = value) -> None:
            path = place / "store.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"format": value}))

        yield Harm(f"store.json of format {value!r}", older)


def _copied(part: int, shuffled: bool) -> Callable[[Path, Path], None]:
    def do(place: Path, other: Path) -> None:
        paths = sorted(path for path in place.rglob("*") if path.is_file())
        if shuffled:
            paths = paths[::2] + paths[1::2]
        for path in paths[len(paths) * part // 8 :]:
            if path.name != "store.json":
                path.unlink()

    return do


def _drafts(place: Path, other: Path) -> None:
    for path in [p for p in place.rglob("*") if p.is_file()]:
        draft = path.with_name(f".{path.name}.Xy12Ab")
        draft.write_bytes(path.read_bytes()[:7])


def _inplace(place: Path, other: Path) -> None:
    path = trials(place)[1] / "spectra.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def _gone_on(place: Path) -> Path:
    """A copy of the store, in which a trial was forgotten and recorded again."""
    copy = place.with_name("gone on")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place, copy)
    store = Store(copy)
    id = store.done_ids()[2]
    store.log.forget([id])
    store.recover(thorough=True)
    return copy


def _went_on_over(place: Path, other: Path) -> None:
    shutil.copytree(_gone_on(place), place, dirs_exist_ok=True)


def _went_on_log(place: Path, other: Path) -> None:
    copy = _gone_on(place)
    store = Store(place)  # which went on, too: two histories from one entry on
    store.log.forget([store.done_ids()[0]])
    store.recover(thorough=True)
    for path in sorted((copy / "log").iterdir()):
        shutil.copy2(path, place / "log" / path.name)


def _restored(place: Path, other: Path) -> None:
    """Of all but the trials."""
    found = entries(place)
    for path in found[len(found) // 2 :]:
        path.unlink()
    shutil.rmtree(place / "cache")
    (place / "comparison.parquet").unlink()


def _old_trials(place: Path, other: Path) -> None:
    for path in itertools.islice(trials(place), 3, None):
        shutil.rmtree(path)
