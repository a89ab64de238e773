"""A small study, and a training that trains nothing: for tests of the store and of those who write
it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from rankscope.analysis.frames import COMPARISON
from rankscope.store import interventions
from rankscope.store.lease import FailureDetector
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
# two packs, for stores whose every file takes a request
SMALL = Study.parse(TEXT.replace("[1, 2, 4]", "[1, 2]").replace("[1e-4, 1e-3]", "1e-3"))
WIDTH = {"m": 8}
TRIALS = STUDY.trials(WIDTH)
PROVENANCE = {"versions": {"rankscope": "0"}, "machine": {"system": "none", "gpu": None}}


def create(path: Path | str, study: Study = STUDY, **fingerprints: str) -> Store:
    return Store.create(
        path, study, largest_rank=WIDTH, fingerprints=fingerprints or {"data/RTE": "a"}
    )


def spectra() -> pd.DataFrame:
    """Of one layer at its start and its end, with the columns that training writes."""
    rows = [
        (0, "W", 4.0),
        (0, "dW", float("nan")),
        (0, "W+dW", 4.0),
        (1, "dW", 1.5),
        (1, "W+dW", 3.0),
    ]
    frame = pd.DataFrame(rows, columns=["step", "matrix", "stable_rank"])
    sizes = {"layer": "x", "m": 8, "n": 8, "effective_rank": 2.0}
    norms = {"spectral_norm": 1.0, "frobenius_norm": frame["stable_rank"] ** 0.5}
    bounds = {"lower": frame["stable_rank"], "upper": frame["stable_rank"] * 1.001}
    return frame.assign(**sizes, **norms, **bounds)


def pretend(
    trials: Sequence[Trial],
    folders: Sequence[TrialDir],
    progress: Callable[[int], None],
    *,
    scratch: Path,
) -> None:
    """Trains nothing, writes what training writes."""
    for trial, folder in zip(trials, folders, strict=True):
        own = int(trial.id[:4], 16) / 2**20  # no two trials' files are the same
        folder.log(step=1, epoch=1.0, train_loss=0.5 + own, eval_loss=float("nan"), accuracy=0.75)
        folder.write_spectra(spectra().assign(effective_rank=2.0 + own))
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
    """A comparison of the store's LoRA trials, made up."""
    trials = store.trials()
    full = trials.loc[trials["method"] == "full", "trial"].iloc[0]
    lora = trials[trials["method"] == "lora"].reset_index(drop=True)
    said = pd.DataFrame({"trial": lora["trial"], "reference": full, "layer": "x"})
    numbers = [c for c in COMPARISON if c not in said.columns]
    return said.assign(**(dict.fromkeys(numbers, 0.5) | {"k": 1, "cosine": lora["best"]}))


def edit(store: Store) -> None:
    """What ``rankscope intervene`` keeps of two trials, made up; what is there stays."""
    for id in store.done_ids()[:2]:
        if interventions.read(store, "settings", id) is None:
            own = int(id[:4], 16) / 2**20  # no two trials' tables are the same
            unchanged = {"family": "scale", "level": 1.0, "draw": 0, "scope": "all"}
            found = {
                "metric": "accuracy",
                "value": 0.5 + own,
                "log_drift": 0.0,
                "answers": [0.0, 1.0],
            }
            lines = [unchanged | found, unchanged | found | {"level": 2.0, "log_drift": -0.5}]
            interventions.write(store, "settings", id, pd.DataFrame(lines), {"labels": [0, 1]})


def sweep(
    path: Path | str, study: Study = STUDY, patience: float | None = None, **fingerprints: str
) -> list[str]:
    """What ``rankscope run`` does. ``patience``: seconds without a heartbeat after which a worker
    is taken for dead. -> the trials that it trained"""
    store = create(path, study, **fingerprints)
    store.recover(thorough=True)
    trained = run(store, patience=patience)
    if trained or store.comparison_fault() is not None:
        store.write_comparison(compared(store))
    return trained


def run(
    store: Store,
    train: Callable[..., None] = pretend,
    size: int = 2,
    patience: float | None = None,
) -> list[str]:
    worker = Worker(store, store.packs(size=size), train, retries=1, provenance=PROVENANCE)
    if patience is not None:
        worker.detector = FailureDetector(store.log, patience=patience, every=patience / 8)
    return worker.run().trained
