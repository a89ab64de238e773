"""The store: one folder that holds a study's results, and the only place that knows its file names.

store.json               the study, and the fingerprints of the data and models it was begun with
study.toml               the study file as its user wrote it
trials/<id>/             one folder per trial (see folder.py)
comparison.parquet       LoRA against full fine-tuning, made again from the trials whenever they change
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.study.files import read_json, write_json
from rankscope.study.folder import SPECTRA, TRIAL, TrialFolder
from rankscope.study.plan import Study, Trial

_TRIAL_COLUMNS = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
_RESULT_COLUMNS = ["status", "metric", "best", "best_step", "last", "steps", "diverged_at", "seconds"]


class Store:
    """Results in a folder. ``Store(path)`` opens one that is there; ``Store.create`` also begins one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise FileNotFoundError(
                f"{self.path}: expected a store (a folder with store.json); found none. "
                f"Begin one with: rankscope run STUDY --store {self.path}"
            )
        self._header = read_json(self.path / "store.json")

    @classmethod
    def create(
        cls,
        path: str | Path,
        study: Study,
        *,
        largest_rank: Mapping[str, int],
        fingerprints: Mapping[str, str],
    ) -> Store:
        """Opens or begins the store of that study.

        A study may grow (more ranks, rates, seeds, tasks): its finished trials count. Another name, other fixed
        parameters, other data or another model under the same name are another study: ``ValueError``.
        """
        path = Path(path)
        if not (path / "store.json").is_file():
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(f"{path}: expected a folder for the store; found a file")
            if path.is_dir() and not all(
                p.name.startswith(".") for p in path.iterdir()
            ):  # a draft of ours is one
                raise ValueError(
                    f"{path}: expected a store or an empty folder; found other files. Name a new --store"
                )
            path.mkdir(parents=True, exist_ok=True)
        else:
            header = cls(path)._header
            _same_study(path, header, study)
            _same_inputs(path, header["fingerprints"], fingerprints)
            fingerprints = {**header["fingerprints"], **fingerprints}
        header = {
            "study": study.model_dump(mode="json"),
            "text": study.source,
            "largest_rank": dict(largest_rank),
        }
        write_json(path / "store.json", header | {"fingerprints": dict(sorted(fingerprints.items()))})
        (path / "trials").mkdir(exist_ok=True)
        return cls(path)

    @property
    def study(self) -> Study:
        """The study as it was last run."""
        return Study(**self._header["study"], source=self.study_text)

    def planned(self) -> list[Trial]:
        """Every trial of the study, trained or not."""
        return self.study.trials(self._header["largest_rank"])

    @property
    def study_text(self) -> str:
        return self._header["text"]

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the data ("data/<TASK>") and of the models ("model/<name>") that the trials were trained with."""
        return self._header["fingerprints"]

    def folder(self, trial_id: str) -> TrialFolder:
        return TrialFolder(self.path / "trials" / trial_id)

    def folders(self) -> list[TrialFolder]:
        """Every trial that was ever begun, finished or not, in the order of their ids."""
        return [
            TrialFolder(path)
            for path in sorted((self.path / "trials").iterdir())
            if (path / "trial.json").is_file()
        ]

    def provenance(self) -> list[dict[str, Any]]:
        """The versions and machines that trained these trials, each once."""
        found = [{k: read_json(f.path / TRIAL)[k] for k in ("versions", "machine")} for f in self.done()]
        return [entry for i, entry in enumerate(found) if entry not in found[:i]]

    def done(self) -> list[TrialFolder]:
        return [folder for folder in self.folders() if folder.is_done]

    def hash(self) -> str:
        """SHA-256 over ids and results of all finished trials: two stores with equal hashes hold equal results."""
        digest = hashlib.sha256()
        for folder in self.done():
            result = {k: v for k, v in folder.result().items() if k != "seconds"}
            digest.update(f"{folder.path.name} {sorted(result.items())}\n".encode())
        return digest.hexdigest()

    def trials(self) -> pd.DataFrame:
        """One row per finished trial: configuration, status, best and last value of its task's metric."""
        rows = []
        for folder in self.done():
            trial = folder.trial()
            rows.append(
                {"trial": folder.path.name, **{c: trial[c] for c in _TRIAL_COLUMNS}, **folder.result()}
            )
        frame = pd.DataFrame(rows, columns=["trial", *_TRIAL_COLUMNS, *_RESULT_COLUMNS])
        integers = dict.fromkeys(("rank", "diverged_at"), "Int64")
        numbers = dict.fromkeys(("best", "last", "learning_rate", "seconds"), "float64")
        return frame.astype({**integers, **numbers, **dict.fromkeys(("seed", "steps", "best_step"), "int64")})

    def metrics(self) -> pd.DataFrame:
        """One row per evaluation; ``metric_value`` is the task's metric, further metrics have columns of their own."""
        rows = []
        for folder in self.done():
            metric = folder.result()["metric"]
            rows += [
                {"trial": folder.path.name, **line, "metric_value": line.get(metric)}
                for line in folder.metrics()
            ]
        first = ["trial", "step", "epoch", "train_loss", "eval_loss", "metric_value"]
        frame = pd.DataFrame(rows, columns=None if rows else first)
        numbers = [c for c in frame.columns if c not in ("trial", "step")]
        return frame.astype(dict.fromkeys(numbers, "float64"))[
            first + [c for c in frame.columns if c not in first]
        ]

    def spectra(self) -> pd.DataFrame:
        """One row per (trial, step, layer, matrix): stable rank with its bounds, and norms."""
        frames = [
            pd.read_parquet(folder.path / SPECTRA).assign(trial=folder.path.name) for folder in self.done()
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["trial"])

    def comparison(self) -> pd.DataFrame:
        """LoRA against full fine-tuning, per layer; empty when the study has only one of them."""
        path = self.path / "comparison.parquet"
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame()

    def write_comparison(self, comparison: pd.DataFrame) -> None:
        draft = self.path / f".comparison.{os.getpid()}"
        comparison.to_parquet(draft, index=False)
        draft.replace(self.path / "comparison.parquet")

    @property
    def is_being_written(self) -> bool:
        try:
            with self.writing():
                return False
        except BlockingIOError:
            return True

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the store for one run; the kernel lets go when the process dies, however it dies."""
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"{self.path}: another run is writing this store; wait for it, or stop it"
                ) from None
            yield


def _same_study(path: Path, header: dict[str, Any], study: Study) -> None:
    old, new = header["study"], study.model_dump(mode="json")
    if old["name"] != new["name"]:
        raise ValueError(
            f"{path}: this store holds study {old['name']!r}; found study {new['name']!r}. Name another --store"
        )
    # `data` may move to another path: its fingerprint says whether it is the same
    changed = [k for k in new["fixed"] if k != "data" and new["fixed"][k] != old["fixed"].get(k)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{path}: this store was begun with {key} = {old['fixed'].get(key)}; found {new['fixed'][key]}. "
            "Fixed parameters are the same in every trial: name another --store"
        )


def _same_inputs(path: Path, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for key, value in new.items():
        if old.get(key, value) != value:
            raise ValueError(
                f"{path}: {key.replace('/', ' ', 1)} has changed since this store was begun "
                f"(SHA-256 {old[key][:12]}, now {value[:12]}). Restore it, or name another --store"
            )
