"""Files outside of a store: whole or not there, and named where they cannot be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankscope.store.files import write_whole
from rankscope.store.storage import LocalStorage

resource = pytest.importorskip("resource")


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Longer ones cannot be written, as on a full disk: the system's error names no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_page_that_does_not_fit(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_whole(page, "old")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large") as told:
        write_whole(page, "new " * 100)
    assert told.value.filename == str(page)
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]
    write_whole(page, b"new")
    assert page.read_text() == "new"


@pytest.mark.parametrize("durable", [True, False])
def test_a_stores_file_that_does_not_fit(durable: bool, tmp_path: Path) -> None:
    with files_of_at_most(100), pytest.raises(OSError, match="File too large") as told:
        LocalStorage(tmp_path).write("trials/x", b"x" * 1000, durable=durable)
    assert told.value.filename == str(tmp_path / "trials" / "x")
    assert list((tmp_path / "trials").iterdir()) == []
