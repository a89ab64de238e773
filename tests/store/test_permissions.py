"""Files and folders that this user may not read or write, on a real file system."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretend import create, sweep
from rankscope.cli import main
from rankscope.store.store import Store
from rankscope.sweep.check import check

NOBODY = 65534


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """As a user to whom permission bits apply: root reads whatever they say."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A finished store of that user, where others may go."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    sweep(folder / "s")
    check(folder / "s")  # imports what it needs: Python's own files may be root's alone
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
    yield folder / "s"
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["cache", "cache/packs", "beats"])
def test_what_can_be_made_again_stops_nothing(name: str, place: Path) -> None:
    whole = Store(place).trials()
    (place / name).mkdir(exist_ok=True)
    (place / name).chmod(0)
    with without_rights():
        assert check(place).is_whole
        assert Store(place).trials().equals(whole)


@pytest.mark.parametrize("name", ["trials", "log"])
def test_what_may_not_be_read_is_named_and_left(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    (place / name).chmod(0)
    with without_rights():
        assert main(["status", str(place)]) == 2
        assert main(["check", str(place), "--repair"]) == 2
        with pytest.raises(PermissionError):
            create(place).recover(thorough=True)
    assert capsys.readouterr().err == f"rankscope: {place / name}: Permission denied\n" * 2
    (place / name).chmod(0o755)
    assert sorted(place.rglob("*")) == before
    assert check(place).is_whole
