"""The store: one folder that holds a study's results, and the only place that knows its file names.

store.json               the study, and the fingerprints of the data and models it was begun with
trials/<id>/             one folder per finished trial (folder.py)
log/<number>.json        who trains what (log.py)
beats/<claim>.json       heartbeats (lease.py)
work/<claim>/            trials/<id>/ and scratch/ of a claim: what its worker is writing
cache/                   tables and the log's beginning in few files; may be deleted (cached_table.py, snapshot.py)
comparison.parquet       LoRA against full fine-tuning, made again from the trials whenever they change
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.store import trial_tables
from rankscope.store.cached_table import cached_table
from rankscope.store.files import dumps, loads, read_json
from rankscope.store.log import Log
from rankscope.store.same_study import check_same_inputs, check_same_study
from rankscope.store.storage import LocalStorage, storage_at
from rankscope.store.trial_dir import DONE, METRICS, SPECTRA, TRIAL, TrialDir
from rankscope.study.packing import no_share, packs
from rankscope.study.study_file import Study, Trial

COMPARISON = "comparison.parquet"


class Store:
    """Results in a folder. ``Store(path)`` opens one that is there; ``Store.create`` also begins one."""

    def __init__(self, place: str | Path) -> None:
        self.storage = storage_at(place)
        self.path = self.storage.root  # where files are read from
        try:
            self._header = loads(self.storage.read("store.json"), f"{place}/store.json")
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"{place}: expected a store (a folder with store.json); found none. "
                f"Begin one with: rankscope run STUDY --store {place}"
            ) from None

    def __str__(self) -> str:
        """The folder or the URL."""
        return str(self.storage)

    @classmethod
    def create(
        cls,
        place: str | Path,
        study: Study,
        *,
        largest_rank: Mapping[str, int],
        fingerprints: Mapping[str, str],
    ) -> Store:
        """Opens or begins the store of that study.

        A study may grow (more ranks, rates, seeds, tasks): its finished trials count. Another name, other fixed
        parameters, other data or another model under the same name are another study: ``ValueError``.
        """
        header = {
            "study": study.model_dump(mode="json"),
            "text": study.source,
            "largest_rank": dict(sorted(largest_rank.items())),
            "fingerprints": dict(sorted(fingerprints.items())),
            "earlier": [],
        }
        storage = storage_at(place)
        if not storage.exists("store.json"):
            if isinstance(storage, LocalStorage) and storage.root.exists() and not storage.root.is_dir():
                raise NotADirectoryError(f"{place}: expected a folder for the store; found a file")
            if storage.names(""):  # drafts of ours are hidden
                raise ValueError(
                    f"{place}: expected a store or an empty folder; found other files. Name a new --store"
                )
            if storage.create("store.json", dumps(header)):
                return cls(place)
        old = cls(place)._header  # also when another run was just first
        check_same_study(str(place), old, study)
        check_same_inputs(str(place), old["fingerprints"], fingerprints)
        header["fingerprints"] = dict(sorted({**old["fingerprints"], **fingerprints}.items()))
        header["largest_rank"] = dict(sorted({**old["largest_rank"], **largest_rank}.items()))
        earlier = old.get("earlier", [])
        header["earlier"] = (
            earlier if old["study"] in (header["study"], *earlier) else [*earlier, old["study"]]
        )
        if {"format": old["format"], **header} != old:
            storage.write("store.json", dumps(header))
        return cls(place)

    @property
    def study(self) -> Study:
        """The study as it was last run."""
        return Study(**self._header["study"], source=self.study_text)

    def planned(self) -> list[Trial]:
        """Every trial of the study, trained or not."""
        return self.study.trials(self._header["largest_rank"])

    def packs(self, *, size: int, share: Callable[[Trial], float] = no_share) -> list[list[Trial]]:
        """The study's trials in packs (``study.packs``), the same ones whatever is done: who trains a pack again, with
        the same room for it, trains the same pack.

        Where the study has grown, the trials that came with it make packs of their own.
        """
        wanted = {trial.id for trial in self.planned()}
        known: set[str] = set()
        result: list[list[Trial]] = []
        for study in self._studies():
            trials = {trial.id: trial for trial in study.trials(self._header["largest_rank"])}
            added = [trial for id, trial in trials.items() if id in wanted and id not in known]
            known |= trials.keys()
            result += packs(added, size=size, share=share)
        return result

    def _studies(self) -> list[Study]:
        """What the study was before it grew, and what it is."""
        return [*(Study(**old) for old in self._header.get("earlier", [])), self.study]

    @property
    def study_text(self) -> str:
        return self._header["text"]

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the data ("data/<TASK>") and of the models ("model/<name>") that the trials were trained with."""
        return self._header["fingerprints"]

    def folder(self, trial_id: str, *, weights: bool = False) -> TrialDir:
        """A trial's folder. ``weights``: with ``best/`` and ``last/``, which a store behind a URL keeps there."""
        if weights:
            self.storage.fetch_below(f"trials/{trial_id}")
        return TrialDir(self.path / "trials" / trial_id)

    @cached_property
    def log(self) -> Log:
        """Who trains what; ``refresh`` reads on."""
        return Log(self.storage)

    def provenance(self) -> list[dict[str, Any]]:
        """The versions and machines that trained these trials, each once."""
        found = [{k: read_json(f.path / TRIAL)[k] for k in ("versions", "machine")} for f in self.done(TRIAL)]
        return [entry for i, entry in enumerate(found) if entry not in found[:i]]

    def done_ids(self, *files: str) -> list[str]:
        """The finished trials, in the order of their ids; these ``files`` of theirs can be read."""
        ids = self.storage.names("trials")
        self.storage.fetch([f"trials/{id}/{file}" for id in ids for file in (*files, DONE)])
        root = f"{self.path}/trials"  # text, not paths: there may be many
        return [id for id in ids if os.path.isfile(f"{root}/{id}/{DONE}")]

    def done(self, *files: str) -> list[TrialDir]:
        """Their folders."""
        root = self.path / "trials"
        return [TrialDir(root / id) for id in self.done_ids(*files)]

    def results(self) -> dict[str, dict[str, Any]]:
        """What became of the finished trials, at least their "status" and "seconds", as their commits say it: no trial is
        opened, unless its commit is older than that."""
        ids = self.storage.names("trials")
        self.log.refresh()  # afterwards: who is there is committed
        said = self.log.results
        if all(id in said for id in ids):
            return {id: said[id] for id in ids}
        read = self.trials()
        rows = zip(read["trial"], read["status"], read["seconds"], strict=True)
        return {id: said.get(id) or {"status": how, "seconds": seconds} for id, how, seconds in rows}

    def hash(self) -> str:
        """SHA-256 over ids and results of all finished trials: two stores with equal hashes hold equal results."""
        digest = hashlib.sha256()
        for folder in self.done():
            result = {k: v for k, v in folder.result().items() if k != "seconds"}
            digest.update(f"{folder.path.name} {sorted(result.items())}\n".encode())
        return digest.hexdigest()

    def trials(self) -> pd.DataFrame:
        """One row per finished trial: configuration, status, best and last value of its task's metric; ``budget`` is 2 where
        it trained for twice as long as the study says (``[[arm]]``)."""
        frame = cached_table(self.path / "cache" / "trials.parquet", self.done(TRIAL), trial_tables.trials)
        budgets: dict[str, float] = {}
        for study in self._studies():
            budgets |= study.budgets(self._header["largest_rank"])
        return frame.assign(budget=frame["trial"].map(budgets).astype("float64").fillna(1.0))

    def metrics(self) -> pd.DataFrame:
        """One row per evaluation; ``metric_value`` is the task's metric, further metrics have columns of their own."""
        return cached_table(self.path / "cache" / "metrics.parquet", self.done(METRICS), trial_tables.metrics)

    def spectra(self) -> pd.DataFrame:
        """One row per (trial, step, layer, matrix): stable rank with its bounds, and norms."""
        parts = list(self.spectra_parts())
        return pd.concat(parts, ignore_index=True) if parts else trial_tables.spectra([])

    def spectra_parts(self) -> Iterator[pd.DataFrame]:
        """The same in parts of whole trials, each read when it is asked for."""
        folders = self.done(SPECTRA)
        for digit in "0123456789abcdef":  # ids are hashes
            part = [folder for folder in folders if folder.path.name.startswith(digit)]
            cache = self.path / "cache" / f"spectra-{digit}.parquet"
            rows = cached_table(cache, part, trial_tables.spectra, of=16)
            if len(rows):
                yield rows

    def comparison(self) -> pd.DataFrame:
        """LoRA against full fine-tuning, per layer; empty when the study has only one of them."""
        try:
            return pd.read_parquet(io.BytesIO(self.storage.read(COMPARISON)))
        except FileNotFoundError:
            return pd.DataFrame()

    def write_comparison(self, comparison: pd.DataFrame) -> None:
        self.storage.write(COMPARISON, comparison.to_parquet(index=False))

    # what workers write

    @contextlib.contextmanager
    def claim_dir(self, claim: int, trials: Sequence[str]) -> Iterator[Path]:
        """The local folder of a claim: ``trials/`` to be filled, and ``scratch/`` as the claim before left it."""
        path = self.storage.claim_dir(f"work/{claim}")
        for before in self.log.ended.get(
            frozenset(trials), []
        ):  # a successor may have died before it took over
            self.storage.take_over(f"work/{before}/scratch", f"work/{claim}/scratch")
            self.storage.remove(f"work/{before}")
        (path / "scratch").mkdir(exist_ok=True)
        yield path

    def flush(self, claim: int) -> None:
        """All that the claim's worker wrote is safe from now on."""
        self.storage.flush(f"work/{claim}/trials")

    def flush_scratch(self, claim: int) -> None:
        """Lets a successor find what is in the claim's scratch now."""
        if not isinstance(self.storage, LocalStorage):  # there it lies in the store anyway
            self.storage.flush(f"work/{claim}/scratch")

    def recover(self, claim: int | None = None) -> None:
        """Puts the trials of committed claims in their place, where a worker died between the two; then takes for
        missing what was finished and is not there (somebody deleted it)."""
        self.log.refresh()
        numbers = self.storage.names("work") if claim is None else [str(claim)]
        for number in numbers:
            if number.isdigit() and int(number) in self.log.committed:
                for trial in self.storage.names(f"work/{number}/trials"):
                    self._place(f"work/{number}/trials/{trial}", trial)
                self.storage.remove(f"work/{number}")
        if claim is None:
            lost = self.log.done.difference(self.done_ids())
            if lost:
                self.log.forget(sorted(lost))
            self.log.done.update(self.done_ids())

    def clean(self) -> None:
        """Removes what ended claims have left behind, when nothing is left to do with it."""
        self.recover()
        for name in self.storage.names("work"):
            if name.isdigit() and int(name) <= self.log.length and int(name) not in self.log.live:
                self.storage.remove(f"work/{name}")

    def _place(self, source: str, trial: str) -> None:
        target = f"trials/{trial}"
        if not self.storage.move(source, target) and not self.storage.exists(f"{target}/{DONE}"):
            raise FileExistsError(
                f"{self}/{target}: expected a finished trial, with done.json; found a folder without. Delete it"
            )

    def drop(self, claim: int) -> None:
        self.storage.remove(f"work/{claim}")
