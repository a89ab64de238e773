"""The store: one folder that holds a study's results, and the only place that knows its file names.

store.json               the study, and fingerprints of its data and models (header.py)
trials/<id>/             one folder per finished trial (trial_dir.py)
log/<number>.json        who trains what (log.py)
beats/<claim>.json       heartbeats (lease.py)
work/<claim>/            trials/<id>/ and scratch/ of a claim: what its worker is writing
harmed/                  what was found damaged, set aside (recovery.py); nothing reads it
cache/                   tables, a snapshot of the log, a copy of store.json; may be deleted
comparison.parquet       LoRA against full fine-tuning, made again whenever the trials change
comparison.json          its SHA-256 and the trials that it was made of
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.store import tables
from rankscope.store.claim import Claim
from rankscope.store.files import DamagedFile
from rankscope.store.header import begin_collected, begin_or_open, read_header
from rankscope.store.integrity import Inspection, inspect, mismatch, of_kind
from rankscope.store.log import Log
from rankscope.store.place import storage_at
from rankscope.store.planned import budgets, is_collected, packs, progress, study_in
from rankscope.store.recovery import clean, recover
from rankscope.store.storage import LocalStorage
from rankscope.store.trial_dir import TrialDir
from rankscope.study.collected import settings_of, study_of
from rankscope.study.packing import no_share
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial


class Store:
    """Results in a folder. ``Store(path)`` opens a store, ``Store.create`` opens or begins one."""

    def __init__(self, place: str | Path) -> None:
        self.storage = storage_at(place)
        self.path = self.storage.root  # where files are read from
        self._header, self.header_fault = read_header(self.storage)

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

        A study may grow (more ranks, rates, seeds, tasks) and keeps its finished trials.
        ``ValueError`` for another name, other fixed parameters, other data or another model.
        """
        at = storage_at(place)
        begin_or_open(at, study, largest_rank=largest_rank, fingerprints=fingerprints)
        return cls(place)

    @classmethod
    def create_empty(cls, place: str | Path, *, name: str = "collected") -> Store:
        """Begins or opens a store of that ``name`` for trials that were trained elsewhere
        (``add_trial``). ``ValueError`` if another store or other files are there."""
        begin_collected(storage_at(place), name)
        return cls(place)

    def add_trial(
        self,
        *,
        adapter: str | Path | Mapping[int, str | Path],
        metrics: pd.DataFrame,
        metric: str = "eval_loss",
        base: str | Path | None = None,
        greater_is_better: bool | None = None,
        result: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> str:
        """Measures a trial that was trained elsewhere and adds it with its weights. -> its id

        Args:
            adapter: the weights after the last step, or step -> weights: PEFT adapters, or full
                checkpoints with ``method="full"``. All are measured; the best and the last are
                copied.
            metrics: a row per evaluation: ``step``; ``epoch``, ``train_loss``, ``eval_loss`` where
                known; a column per further metric.
            metric: the column that chooses among evaluations and learning rates.
            base: the pretrained model; without it there is dW alone, and no drift.
            greater_is_better: of the metric; by default of all but losses and perplexities.
            result: more of ``done.json``: ``status``, ``constant``, ``steps``, ``seconds`` ...
            about: more of ``trial.json``: ``versions``, ``machine``, ``notes``.
            settings: of a trial, as docs/formats.md lists them. ``model``, ``task``,
                ``learning_rate`` and ``seed`` are needed; ``rank``, ``scaling``, ``lora_alpha``,
                ``lora_dropout`` and ``target_modules`` are read from the adapter's configuration.

        Adding the same trial again changes nothing. ``ValueError``, one line, if a setting is
        missing or differs from the adapter's, or if the store holds another trial of these settings
        or another base under the same name.

            >>> rs.Store.create_empty("runs/mine").add_trial(  # doctest: +SKIP
            ...     adapter={500: "out/checkpoint-500"}, base="model", metrics=frame,
            ...     metric="accuracy", task="reviews", learning_rate=1e-4, seed=0)
        """
        from rankscope.store.added import add
        from rankscope.store.given import Added

        given = Added.of(adapter, metrics, metric, greater_is_better, base, result, about, settings)
        return add(self, given)

    @property
    def is_collected(self) -> bool:
        """Whether its trials were trained elsewhere (``create_empty``)."""
        return is_collected(self._header)

    @property
    def refill(self) -> str:
        """What to type where trials are missing: nobody here can train collected ones."""
        verb = "collect RUNS" if self.is_collected else "run STUDY"
        return f"rankscope {verb} --store {self}"

    @property
    def remedy(self) -> str:
        """What to type where trials are harmed."""
        first = f"rankscope check {self} --repair, then " if self.is_collected else ""
        return first + self.refill

    @property
    def study(self) -> Study:
        """The study as last run; of a collected store, its name and lists of settings."""
        if self.is_collected:
            return study_of(self._header["study"]["name"], self.planned())
        return study_in(self._header)

    def planned(self) -> list[Trial]:
        """Every trial of the study, trained or not; of a collected store those that are there."""
        if self.is_collected:
            found = self._records().values()
            return [Trial.model_construct(**record["trial"]) for record in found]
        return self.study.trials(self._header["largest_rank"])

    def packs(self, *, size: int, share: Callable[[Trial], float] = no_share) -> list[list[Trial]]:
        """The study's trials in packs (``study.packing``), independent of what is done, so that a
        pack is the same when it is trained again. Trials of a grown study get their own packs."""
        return packs(self._header, size=size, share=share)

    @property
    def study_text(self) -> str:
        """The study file; of a collected store what its trials have."""
        return self.study.source if self.is_collected else self._header["text"]

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the trials' data ("data/<TASK>") and models ("model/<name>")."""
        return self._header["fingerprints"]

    def _repr_html_(self) -> str:
        """For notebooks: the progress of each task."""
        title = f"store {self}: study {self.study.name}"
        return progress(self.planned(), set(self.done_ids()), title=title)

    def folder(self, trial_id: str, *, weights: bool = False) -> TrialDir:
        """A trial's folder. ``weights``: with ``best/`` and ``last/``, which a store behind a URL
        keeps there. ``ValueError`` where they are not what was committed."""
        folder = TrialDir(self.path / "trials" / trial_id)
        if weights:
            self.storage.fetch_below(f"trials/{trial_id}")
            commit = self.log.done.get(trial_id)
            files = of_kind(commit.files, "weights") if commit is not None and commit.files else {}
            if (fault := mismatch(folder.path, files)) is not None:
                raise DamagedFile(f"{folder.path}: {fault}. Mend it with: {self.remedy}")
        return folder

    @cached_property
    def log(self) -> Log:
        """Who trains what; ``refresh`` reads on."""
        return Log(self.storage, self.id)

    @property
    def id(self) -> str:
        """The id in its trials and log entries; empty if an older version began it."""
        return self._header.get("id", "")

    def inspect(self) -> Inspection:
        """Which trials are whole: sizes of all files, and digests of those read for tables (behind
        a URL: when they are read)."""
        kinds = ("records",) if isinstance(self.storage, LocalStorage) else ()
        return inspect(self.storage, self.log, kinds=kinds)

    def done_ids(self) -> list[str]:
        """The finished trials that are whole, in the order of their ids."""
        return self.inspect().whole

    def results(self, ids: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """The results of these finished trials (default: all), from their commits; trials are only
        opened if an older version committed them."""
        ids = self.done_ids() if ids is None else ids
        said = {id: self.log.done[id].result for id in ids}
        if None in said.values():
            records = self._tables([id for id, result in said.items() if result is None]).records()
            said |= {id: found["result"] for id, found in records.items()}
        return {id: dict(result or {}) for id, result in said.items()}

    def hash(self) -> str:
        """SHA-256 over ids and results of all finished trials: equal hashes mean equal results."""
        digest = hashlib.sha256()
        for id, found in self.results().items():
            result = {key: value for key, value in found.items() if key != "seconds"}
            digest.update(f"{id} {sorted(result.items())}\n".encode())
        return digest.hexdigest()

    def provenance(self) -> list[dict[str, Any]]:
        """The versions and machines that trained these trials, each once."""
        kept = ("versions", "machine")
        found = [{key: said.get(key, {}) for key in kept} for said in self._records().values()]
        return [entry for i, entry in enumerate(found) if entry not in found[:i]]

    def machines(self) -> dict[str, dict[str, Any]]:
        """Trial -> the machine that trained it."""
        return {id: said.get("machine", {}) for id, said in self._records().items()}

    def trials(self) -> pd.DataFrame:
        """One row per finished trial.

        Columns (pandas dtypes): ``trial``, ``model``, ``task``, ``method``, ``scaling``,
        ``setting``, ``status``, ``metric`` (str); ``rank``, ``diverged_at`` (Int64, NA if there is
        none); ``seed``, ``best_step``, ``steps`` (int64); ``learning_rate``, ``best``, ``last``,
        ``seconds``, ``constant``, ``held_out``, ``untrained``, ``budget`` (float64);
        ``greater_is_better`` (bool). ``best`` and ``last`` are of the task's ``metric``; ``budget``
        is 2 for a trial of an ``[[arm]]`` that trains twice as long.
        """
        frame = tables.trials_frame(self._records())
        if self.is_collected and len(frame):
            apart = settings_of({id: said["trial"] for id, said in self._records().items()})
            frame["setting"] = frame["trial"].map(apart)
        longer = frame["trial"].map(budgets(self._header)).astype("float64")
        return frame.assign(budget=longer.fillna(1.0))

    def metrics(self) -> pd.DataFrame:
        """One row per evaluation: ``trial`` (str), ``step`` (int64), ``epoch``, ``train_loss``,
        ``eval_loss``, ``metric_value`` (float64), which is the task's metric; further metrics have
        columns of their own."""
        return tables.metrics_frame(self._records())

    def spectra(self) -> pd.DataFrame:
        """One row per (trial, step, layer, matrix): ``step``, ``m``, ``n`` (int64); ``layer``,
        ``matrix``, ``trial`` (str); ``stable_rank`` with its bounds ``lower`` and ``upper``,
        ``spectral_norm``, ``frobenius_norm``, ``effective_rank`` (float64, NaN where unknown)."""
        parts = list(self.spectra_parts()) or [tables.spectra_frame([])]
        found = pd.concat(parts, ignore_index=True)
        return found.sort_values("trial", kind="stable", ignore_index=True)

    def spectra_parts(self) -> Iterator[pd.DataFrame]:
        """The same in parts of whole trials, unordered, each read on demand."""
        for table in self._tables(self.done_ids()).spectra():
            yield tables.spectra_frame([table])

    def _records(self) -> dict[str, dict[str, Any]]:
        return self._tables(self.done_ids()).records()

    def _tables(self, ids: Sequence[str]) -> tables.Tables:
        return tables.Tables(self.storage, self.log, ids)

    def damaged_tables(self) -> list[str]:
        """The tables in cache/ that differ from their commits: readers make them again."""
        return self._tables(self.done_ids()).damaged()

    def comparison(self) -> pd.DataFrame:
        """LoRA against full fine-tuning, per layer; empty if the study has only one of them or the
        file is damaged (``comparison_fault``)."""
        return tables.read_comparison(self.storage, trials=self.hash)[0]

    def comparison_fault(self) -> str | None:
        """Why the comparison must be made again: missing, damaged, or of other trials."""
        return tables.read_comparison(self.storage, trials=self.hash)[1]

    def write_comparison(self, comparison: pd.DataFrame) -> None:
        tables.write_comparison(self.storage, comparison, trials=self.hash())

    def claim(self, number: int) -> Claim:
        """What a worker writes under that claim."""
        return Claim(self.storage, self.log, number)

    def recover(self, *, thorough: bool = False) -> list[str]:
        """See ``recovery.recover``."""
        return recover(self.storage, self.log, thorough=thorough)

    def clean(self) -> list[str]:
        """See ``recovery.clean``."""
        return clean(self.storage, self.log)
