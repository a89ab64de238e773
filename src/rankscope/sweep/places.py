"""Locates a study's models and data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from rankscope import lab
from rankscope.study.study_file import Study

MOST_FILES = 10_000  # files of a study whose state is checked one by one


def model_path(study: Study, name: str) -> str:
    """What ``from_pretrained`` takes: "lab" is ours, a folder may be relative to the study file,
    else a hub id."""
    if name == "lab":
        return str(lab.ENCODER)
    local = study.folder / name
    if local.is_dir():
        return str(local)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # no hub id looks like this
        raise ValueError(
            f"model {name!r}: expected a folder, or a hub id such as org/name; found no folder "
            f"{local}"
        )
    return name


def local_files(study: Study) -> list[Path] | None:
    """Every file that the study's models and data can be read from, sorted; None if some are on the
    hub or there are too many."""
    places = [Path(model_path(study, name)) for name in study.models]
    for name in study.tasks:
        if name not in study.task:
            places += [] if study.fixed.data == "lab" else [study.folder / study.fixed.data]
            continue
        own = study.task[name]
        if own.data is None:
            splits = [part for part in (own.train, own.validation) if isinstance(part, str)]
            places += [study.folder / Path(split).expanduser() for split in splits]
        else:
            places.append(study.folder / Path(own.data).expanduser())
    if not all(place.exists() for place in places):
        return None
    files = itertools.chain.from_iterable(map(_below, dict.fromkeys(places)))
    found = list(itertools.islice(files, MOST_FILES + 1))
    return sorted(found) if len(found) <= MOST_FILES else None


def _below(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
    for folder, _, names in os.walk(place):
        yield from (Path(folder, name) for name in names)
