"""What can happen to a store: each harm to a copy of one, all of them by name."""

from __future__ import annotations

from collections.abc import Iterator

from harms import copies, files, folders, odd
from harms.files import TRIAL_FILES
from harms.ways import Harm

__all__ = ["TRIAL_FILES", "Harm", "harms"]


def harms() -> Iterator[Harm]:
    yield from files.harms()
    yield from folders.harms()
    yield from odd.harms()
    yield from copies.harms()
