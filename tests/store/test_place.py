"""Where a store is: what a path says on Windows, told by its text alone; and the names that stores
and reports are made of, which every system can keep."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pretend import edit, sweep
from rankscope.report.from_store import write_report
from rankscope.store.place import local_path
from rankscope.store.store import Store


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (r"C:\runs\mine", r"C:\runs\mine"),
        ("runs/mine.2", "runs/mine.2"),
        (r"..\runs", r"..\runs"),
        ("file:///C:/runs", "C:/runs"),
        (r"\\server\share\runs", r"\\server\share\runs"),
        ("console/lpt", "console/lpt"),
    ],
)
def test_paths_of_windows(place: str, path: str) -> None:
    assert local_path(place, windows=True) == path


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (r"C:\runs:mine", "runs:mine"),
        ("runs/CON", "CON"),
        ("nul.json/x", "nul.json"),
        ("com1 .txt", "com1 .txt"),
        ("runs/mine.", "mine."),
        ("mine /x", "mine "),
        ("a?b", "a?b"),
    ],
)
def test_what_windows_takes_for_something_else(place: str, part: str) -> None:
    with pytest.raises(ValueError, match="that Windows can keep") as told:
        local_path(place, windows=True)
    assert repr(part) in str(told.value)
    assert local_path(place, windows=False) == place


def test_all_names_can_be_kept_anywhere(tmp_path: Path) -> None:
    """Of a store with edited trials and its report: no name but in one case, none reserved, and
    short enough for a path of 260 characters."""
    place = tmp_path / "s"
    sweep(place)
    edit(Store(place))
    write_report(place)
    names = [path.relative_to(place).as_posix() for path in place.rglob("*")]
    assert len(names) > 50
    for name in names:
        assert local_path(name, windows=True) == name
        assert re.fullmatch(r"[\w./ -]+", name, re.ASCII), name
    assert len({name.casefold() for name in names}) == len(names)
    assert max(map(len, names)) < 120
