"""Finds the rows of a user's own task: in files, a folder, a saved data set, or on the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.study.own_task import OwnTask
from rankscope.train.table_file import CLASS_NAMES, class_names, name_and_kind, read_table

VALIDATION = ("validation", "valid", "val", "dev")  # what a split to validate on is called
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Source:
    """The splits of one task's data. ``ValueError`` or ``OSError``, one line, for what is not
    there."""

    def __init__(self, own: OwnTask, folder: Path) -> None:
        self.own, self.folder = own, folder
        self.path = None if own.data is None else folder / Path(own.data).expanduser()
        self._sets: dict[str, Any] | None = None  # splits of a saved data set, or of the hub's
        if own.config is not None and (self.path is None or self.path.exists()):
            raise ValueError(
                "config: expected data to be a hub id, of which it names a configuration; found "
                f"{'none' if self.path is None else self.path}"
            )
        if self.path is None or self.path.is_file():
            return
        if not self.path.is_dir():
            self._sets = _from_hub(own, self.path)
        elif {"state.json", "dataset_dict.json"} & {file.name for file in self.path.iterdir()}:
            self._sets = _saved(self.path)

    @property
    def is_one_file(self) -> bool:
        return self.path is not None and self.path.is_file()

    def read(self, split: str | None, *, otherwise: Sequence[str]) -> tuple[pd.DataFrame, str]:
        """-> the rows of a split (None: of the first there is of ``otherwise``), and its place in
        words"""
        if self.is_one_file:
            assert self.path is not None
            return read_table(self.path), str(self.path)
        if self._sets is not None:
            name = self._named(split, otherwise, list(self._sets))
            return _frame(self._sets[name]), f"{self.own.data} {name}"
        if self.path is None:
            assert split is not None
            return self._file(self.folder / Path(split).expanduser())
        files = {file.name: file for file in sorted(self.path.iterdir()) if _is_table(file)}
        if split in files:
            return self._file(files[split])
        by_stem: dict[str, Path] = {}
        for file in files.values():
            stem = name_and_kind(file)[0]
            if by_stem.setdefault(stem, file) is not file:
                raise ValueError(
                    f"{self.path}: expected one file for each split; found "
                    f"{by_stem[stem].name} and {file.name}: name the file"
                )
        return self._file(by_stem[self._named(split, otherwise, list(by_stem))])

    def _file(self, path: Path) -> tuple[pd.DataFrame, str]:
        return read_table(path), str(path)

    def _named(self, split: str | None, otherwise: Sequence[str], known: list[str]) -> str:
        name = split or next((name for name in otherwise if name in known), None)
        if name in known:
            return str(name)
        wanted = split or otherwise[0]
        raise ValueError(
            f"{self.own.data}: expected a split {wanted!r}; found {', '.join(known) or 'none'}. "
            f'Name one: {"train" if "train" in otherwise else "validation"} = "...", or take a '
            "share of the rows: validation = 0.2"
        )


def _is_table(path: Path) -> bool:
    return path.is_file() and name_and_kind(path)[1] != ""


def _saved(path: Path) -> dict[str, Any]:
    """A folder that ``datasets`` wrote with ``save_to_disk``."""
    import datasets

    try:
        found = datasets.load_from_disk(path)
    except Exception as error:  # of any kind: damaged JSON, Arrow files, features
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"{path}: expected a saved data set; {_reason(error)}") from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _from_hub(own: OwnTask, path: Path) -> dict[str, Any]:
    """All splits of a data set on the hub, from its cache without a network. No code of it runs:
    ``datasets`` has no loading scripts since version 4."""
    name = str(own.data)
    if not _HUB_ID.fullmatch(name) or name_and_kind(Path(name))[1]:
        raise FileNotFoundError(
            f"data: expected a file, a folder, or a hub id such as org/name; found no {path}"
        )
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name, own.config)
    except Exception as error:  # of the network, of the files, of a missing configuration
        if isinstance(error, MemoryError):
            raise
        raise ValueError(
            f"data: expected a file, a folder, or a data set of the hub; found no {path}, and of "
            f"the hub's {name}: {_reason(error)}"
        ) from None
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
    return dict(found)


def _frame(dataset: Any) -> pd.DataFrame:
    frame: pd.DataFrame = dataset.to_pandas()
    frame.attrs[CLASS_NAMES] = class_names(dataset.features.to_dict())
    return frame


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
