"""Harms to whole folders of a store, to names, times and what lies beside its files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from harms.ways import Harm, ways
from rankscope.store.files import dumps, loads
from rankscope.store.store import Store

INTERVENTIONS = ("parquet", "json")


def trials(place: Path) -> list[Path]:
    return sorted((place / "trials").iterdir())


def removed(path: Path) -> None:
    shutil.rmtree(path)


def made_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def looped(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nowhere")


def on_another_disk(path: Path) -> None:
    """Moved, with a link where it was: nothing is wrong with that."""
    place = next(p for p in path.parents if (p / "store.json").is_file())
    away = place.with_name(f"moved {path.name}")
    shutil.rmtree(away, ignore_errors=True)
    shutil.move(path, away)
    path.symlink_to(away)


def in_capitals(path: Path) -> None:
    path.rename(path.with_name(path.name.upper()))


# folder, and how many trials are lost with it
FOLDERS: tuple[tuple[str, Callable[[Path], Path], int], ...] = (
    ("trials/", lambda place: place / "trials", 8),
    ("a trial's folder", lambda place: trials(place)[1], 1),
    ("a trial's best/", lambda place: trials(place)[1] / "best", 1),
    ("log/", lambda place: place / "log", 0),
    ("work/", lambda place: place / "work", 0),
    ("beats/", lambda place: place / "beats", 0),
    ("cache/", lambda place: place / "cache", 0),
    ("cache/packs/", lambda place: place / "cache" / "packs", 0),
    ("interventions/", lambda place: place / "interventions", 0),
    ("a folder of interventions", lambda place: next((place / "interventions").iterdir()), 0),
)
WAYS = (removed, made_a_file, looped, dangling, on_another_disk, in_capitals)


def harms() -> Iterator[Harm]:
    for name, find, lost in FOLDERS:
        for way in WAYS:

            def do(
                place: Path,
                other: Path,
                find: Callable[[Path], Path] = find,
                way: Callable[[Path], None] = way,
            ) -> None:
                find(place).mkdir(exist_ok=True)
                way(find(place))

            again = 0 if way is on_another_disk else lost
            local = way in (looped, dangling, on_another_disk)
            yield Harm(f"{name} {way.__name__}", do, again=again, local=local)
    yield from _of_interventions()
    yield from _of_names()
    yield from _of_times()
    yield from _of_other_stores()
    yield from _of_claims()


def _of_interventions() -> Iterator[Harm]:
    for kind in INTERVENTIONS:
        for way in ways(f"x.{kind}"):

            def do(
                place: Path,
                other: Path,
                kind: str = kind,
                way: Callable[[Path, Path], None] = way,
            ) -> None:
                one, another = sorted(place.glob(f"interventions/*/*.{kind}"))[:2]
                way(one, another)

            local = way.__name__ in ("looped", "piped", "linked")
            yield Harm(f"an edited trial's .{kind} {way.__name__}", do, local=local)
    yield Harm("an edited trial's files deleted", _edits_deleted)
    yield Harm("an edited trial's files another's", _edits_of_another)
    yield Harm("an edited trial's files of a day before", _edits_of_before)


def _of_names() -> Iterator[Harm]:
    """Files and folders that other programs leave, and names that no terminal should print."""
    beside = {
        "trials/.DS_Store": "x", "trials/Thumbs.db": "x", "trials/desktop.ini": "x",
        "trials/a\nb": "x", "trials/\x1b[2Jgone": "x", "trials/<script>": "x",
        "log/.00000003.json.swp": "x", "log/00000003.json~": "x", "log/3.json": "{}",
        "log/00000003 (conflicted copy).json": "{}", "log/00000003.JSON": "{}",
        "beats/notes": "x", "work/notes": "x", "work/99/trials/x/done.json": "{}",
        "cache/packs/99.parquet": "x", "interventions/x/y.json": "{}", "interventions/z": "x",
        "harmed": "x", "notes.txt": "x", "log/99999999.json": "{}",
    }  # fmt: skip
    for name, text in beside.items():

        def do(place: Path, other: Path, name: str = name, text: str = text) -> None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)

        # a line break in a key is refused by the server of the bucket that the harms are done in
        yield Harm(f"beside: {name!r}", do, local="\n" in name)
    yield Harm("beside: a name that is no text", _no_text, local=True)
    yield Harm("beside a trial's files: a draft", lambda p, o: _write(trials(p)[1] / ".x", "x"))
    yield Harm("beside a trial's files: a copy", lambda p, o: _write(trials(p)[1] / "x~"))
    yield Harm(
        "a trial's folder twice",
        lambda p, o: _copy(t := trials(p)[1], t.with_name(f"{t.name} (1)")),
    )
    yield Harm(
        "a trial's done.json in capitals",
        lambda p, o: _rename(trials(p)[1] / "done.json", "DONE.JSON"),
        again=1,
    )
    yield Harm("store.json in capitals", lambda p, o: _rename(p / "store.json", "STORE.JSON"))
    yield Harm("store.json and cache/ deleted", _without_header)


def _of_times() -> Iterator[Harm]:
    """A clock that was set back, or was wrong."""
    for year, seconds in (("1970", 0), ("before 1970", -(10**9)), ("2100", 4_102_444_800)):

        def do(place: Path, other: Path, seconds: int = seconds) -> None:
            for path in [place, *place.rglob("*")]:
                os.utime(path, (seconds, seconds))

        yield Harm(f"all times of {year}", do, local=True)


def _of_other_stores() -> Iterator[Harm]:
    yield Harm("another store copied in, nothing overwritten", _mixed)
    yield Harm("a store inside trials/", lambda p, o: _copy(o, p / "trials" / "inner"))
    yield Harm("a store inside a trial", lambda p, o: _copy(o, trials(p)[1] / "inner"))
    yield Harm("a store beside trials/", lambda p, o: _copy(o, p / "inner"))
    yield Harm("a store inside itself", _inside_itself)
    yield Harm("hard links to another's files", _hard_links, again=1, local=True)


def _of_claims() -> Iterator[Harm]:
    """Claims that nobody can end but by waiting: until then the trial may be in training there."""
    for name, host, boot in (("another host", "elsewhere", "x"), ("an earlier boot", "", "y")):

        def do(place: Path, other: Path, host: str = host, boot: str = boot) -> None:
            store = Store(place)
            id = store.done_ids()[1]
            store.log.forget([id])
            shutil.rmtree(place / "trials" / id)
            number = store.log.claim([id], worker="w", host=host, boot=boot)
            (place / "work" / str(number) / "trials" / id).mkdir(parents=True)

        yield Harm(f"a claim left by {name}", do, again=1, patience=0.5, training=True)


def _edits(place: Path) -> list[tuple[Path, Path]]:
    return list(
        zip(*(sorted(place.glob(f"interventions/*/*.{k}")) for k in INTERVENTIONS), strict=True)
    )


def _edits_deleted(place: Path, other: Path) -> None:
    for path in _edits(place)[0]:
        path.unlink()


def _edits_of_another(place: Path, other: Path) -> None:
    for path, another in zip(*_edits(place), strict=True):
        shutil.copy2(another, path)


def _edits_of_before(place: Path, other: Path) -> None:
    """Whole, and of this trial's weights: only the log says that they were made again since."""
    table, about = _edits(place)[0]
    said = loads(about.read_bytes(), "x")
    pd.read_parquet(table).assign(value=0.375).to_parquet(table, index=False)
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    about.write_bytes(dumps(said | {"parquet": digest}))


def _no_text(place: Path, other: Path) -> None:
    os.mkdir(os.fsencode(place / "trials") + b"/\xff\xfe")
    with open(os.fsencode(place / "log") + b"/\xff.json", "w") as file:
        file.write("x")


def _write(path: Path, text: str = "") -> None:
    path.write_text(text)


def _rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def _without_header(place: Path, other: Path) -> None:
    (place / "store.json").unlink()
    shutil.rmtree(place / "cache")


def _mixed(place: Path, other: Path) -> None:
    for path in sorted(other.rglob("*")):
        target = place / path.relative_to(other)
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def _inside_itself(place: Path, other: Path) -> None:
    shutil.copytree(place, place.with_name("twin"))
    shutil.move(place.with_name("twin"), place / "trials" / "twin")


def _hard_links(place: Path, other: Path) -> None:
    one, another = trials(place)[1:3]
    for name in ("metrics.jsonl", "best/adapter_model.safetensors"):
        (one / name).unlink()
        os.link(another / name, one / name)
