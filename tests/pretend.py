"""A small study, and a training that trains nothing: for tests of the store and of those who write
it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.worker import Worker

TEXT = """
name = "t"
[scientific]
model = "m"
task = "RTE"
rank = [1, 2, 4]
[nuisance]
learning_rate = [1e-4, 1e-3]
[fixed]
epochs = 1
"""
STUDY = Study.parse(TEXT)
WIDTH = {"m": 8}
TRIALS = STUDY.trials(WIDTH)


def create(path: Path | str, study: Study = STUDY, **fingerprints: str) -> Store:
    return Store.create(
        path, study, largest_rank=WIDTH, fingerprints=fingerprints or {"data/RTE": "a"}
    )


def spectra() -> pd.DataFrame:
    return pd.DataFrame({"step": [0], "layer": ["x"], "matrix": ["W"], "stable_rank": [2.0]})


def pretend(
    trials: Sequence[Trial],
    folders: Sequence[TrialDir],
    progress: Callable[[int], None],
    *,
    scratch: Path,
) -> None:
    """Trains nothing, writes what training writes."""
    for trial, folder in zip(trials, folders, strict=True):
        folder.log(step=1, epoch=1.0, train_loss=0.5, eval_loss=float("nan"), accuracy=0.75)
        folder.write_spectra(spectra())
        for name in ("best", "last"):
            (folder.path / name).mkdir()
            (folder.path / name / "adapter_model.safetensors").write_bytes(
                f"{name} of {trial.id}".encode()
            )
            (folder.path / name / "adapter_config.json").write_text(
                json.dumps({"r": trial.rank or 0})
            )
        best = trial.learning_rate
        folder.finish(
            status="done",
            metric="accuracy",
            best=best,
            best_step=1,
            last=best,
            steps=1,
            diverged_at=None,
            seconds=0.1,
        )
        progress(1)


def compared(store: Store) -> pd.DataFrame:
    """A comparison of the store's trials, made up."""
    trials = store.trials()
    return pd.DataFrame({"trial": trials["trial"], "layer": "x", "k": 1, "cosine": trials["best"]})


def sweep(path: Path | str, study: Study = STUDY, **fingerprints: str) -> list[str]:
    """What ``rankscope run`` does. -> the trials that it trained"""
    store = create(path, study, **fingerprints)
    store.recover(thorough=True)
    trained = run(store)
    if trained or store.comparison_fault() is not None:
        store.write_comparison(compared(store))
    return trained


def run(store: Store, train: Callable[..., None] = pretend, size: int = 2) -> list[str]:
    return Worker(store, store.packs(size=size), train, retries=1, provenance={}).run().trained
