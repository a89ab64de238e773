"""Caches what a plan reads of a study's models and data, so that the next plan loads neither torch
nor a tokenizer.

The files are in the user's cache (``system.cache_dir``) and may be deleted at any time. Each
belongs to one state of the study's files (sizes and times), of rankscope and of its libraries. Only
``plan`` reads them: a run reads the models and data themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rankscope
from rankscope import system
from rankscope.store.files import read_json, write_json
from rankscope.study.cost import Rows, Shape, Site, adapter_kind
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.machine import device_type
from rankscope.sweep.sizes import Sizes, model_path

MOST = 64  # most recent files that are kept
MOST_FILES = 10_000  # files of a study whose state is checked one by one
_UNSEEN = {"learning_rate", "seed", "rank"}  # keys of a study that do not affect the cached values
Key = tuple[Any, ...]


class Remembered(Sizes):
    """What an earlier plan found in the same files, else what ``read`` finds now."""

    def __init__(self, study: Study, read: Callable[[], Sizes]) -> None:
        super().__init__(study, device_type(), free=None)
        self._read, self._place = read, _place(study)  # determined before anything is read
        self._kept = _kept(self._place)
        targets = self._ask("targets", (), lambda inputs: inputs.study.fixed.target_modules)
        fixed = study.fixed.model_copy(update={"target_modules": targets})
        self.study = study.model_copy(update={"fixed": fixed})

    @cached_property
    def _inputs(self) -> Sizes:
        return self._read()

    def _ask(self, what: str, key: Key, answer: Callable[[Sizes], Any]) -> Any:
        asked = (what, *key)
        if asked not in self._kept:
            self._kept[asked] = answer(self._inputs)
        return self._kept[asked]

    @cached_property
    def largest_rank(self) -> dict[str, int]:
        return self._ask("largest_rank", (), lambda inputs: inputs.largest_rank)

    @cached_property
    def drawn(self) -> dict[str, str]:
        return self._ask("drawn", (), lambda inputs: inputs.drawn)

    @cached_property
    def summaries(self) -> list[str]:
        return self._ask("summaries", (), lambda inputs: inputs.summaries)

    @cached_property
    def training_rows(self) -> dict[str, int]:
        return self._ask("training_rows", (), lambda inputs: inputs.training_rows)

    def is_language(self, task: str) -> bool:
        return self._ask("is_language", (task,), lambda inputs: inputs.is_language(task))

    def shape(self, trial: Trial) -> Shape:
        key = (trial.model, *trial.target_modules)
        return self._ask("shape", key, lambda inputs: inputs.shape(trial))

    def rows(self, trial: Trial) -> Rows:
        return self._ask("rows", _of_rows(trial), lambda inputs: inputs.rows(trial))

    def mean_tokens(self, trial: Trial, rows: int) -> list[tuple[int, float]]:
        key = (*_of_rows(trial), rows)
        return self._ask("tokens", key, lambda inputs: inputs.mean_tokens(trial, rows))

    def why_apart(self, trial: Trial) -> str | None:
        return self._ask("apart", _of_kind(trial), lambda inputs: inputs.why_apart(trial))

    def why_slow(self, trial: Trial, device: str) -> str | None:
        key = (trial.method, device, *_of_kind(trial))
        return self._ask("slow", key, lambda inputs: inputs.why_slow(trial, device))

    def keep(self) -> None:
        """Saves what was read for the next plan, if there is a cache."""
        if self._place is None or "_inputs" not in vars(self):
            return
        kept = [
            [key, asdict(value) if isinstance(value, Shape | Rows) else value]
            for key, value in self._kept.items()
        ]
        with contextlib.suppress(OSError):
            write_json(self._place, {"kept": kept})
            files = self._place.parent.glob("*.json")
            for old in sorted(files, key=lambda path: path.stat().st_mtime_ns)[:-MOST]:
                old.unlink()


def _of_rows(trial: Trial) -> Key:
    return (trial.model, trial.task, trial.max_length)


def _of_kind(trial: Trial) -> Key:
    return (trial.model, trial.lora_dropout > 0, *adapter_kind(trial)[1:])


def _kept(place: Path | None) -> dict[Key, Any]:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        if place is not None:
            kept = read_json(place)["kept"]
            return {tuple(key): _decoded(key[0], value) for key, value in kept}
    return {}


def _place(study: Study) -> Path | None:
    """The cache file for this state of the study's files; None if some are on the hub, whose state
    is unknown, or if others can write to the cache."""
    try:
        files = local_files(study)
        if files is None:
            return None
        state = [(str(path), *_state(path)) for path in files]
    except OSError:
        return None
    if (folder := system.own_cache("plans")) is None:
        return None
    ours = sorted(map(_state, Path(rankscope.__file__).parent.rglob("*.py")))
    libraries = [version(name) for name in ("torch", "transformers", "tokenizers", "rankscope")]
    key = json.dumps([_seen(study.model_dump(mode="json")), state, ours, libraries])
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


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


def _state(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


def _seen(value: Any) -> Any:
    """A study's sections without keys that do not affect the cached values."""
    if isinstance(value, dict):
        return {key: _seen(part) for key, part in value.items() if key not in _UNSEEN}
    return [_seen(part) for part in value] if isinstance(value, list) else value


def _decoded(what: str, value: Any) -> Any:
    if what == "shape":
        return Shape(**{**value, "adapted": tuple(Site(**site) for site in value["adapted"])})
    return Rows(**value) if what == "rows" else value
