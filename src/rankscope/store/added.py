"""A trial that was trained elsewhere becomes one of a store: checked, measured, committed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from rankscope.store.claim import Claim
from rankscope.store.files import finite
from rankscope.store.given import CONFIG, Added
from rankscope.store.header import add_fingerprint
from rankscope.store.lease import WorkerLock, is_gone
from rankscope.store.log import Log
from rankscope.store.storage import Storage
from rankscope.store.trial_dir import METRICS, TrialDir

# what is copied of a checkpoint: weights and what describes them, no optimiser, no pickle beside
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin.index.json")
PICKLED = ("pytorch_model*.bin", "adapter_model.bin")
BESIDE = (CONFIG, "config.json")


class Keeps(Protocol):
    """What of a store is needed here."""

    storage: Storage

    @property
    def log(self) -> Log: ...
    @property
    def id(self) -> str: ...
    @property
    def is_collected(self) -> bool: ...
    def claim(self, number: int) -> Claim: ...


def add(store: Keeps, given: Added) -> str:
    """Measures and commits it, or finds it there already. -> its id"""
    if not store.is_collected:
        raise ValueError(
            f"{store}: expected a store for trials that were trained elsewhere "
            "(Store.create_empty); found one of a study"
        )
    id = given.trial.id
    files = {
        f"{part}/{path.name}": path
        for part, folder in given.kept.items()
        for path in weight_files(folder)
    }
    if _is_there(store, given, files):
        return id
    spectra = _measured(store, given)
    with _claimed(store, id) as number, store.claim(number).dir([id]) as work:
        folder = TrialDir(work / "trials" / id)
        folder.begin(given.trial, provenance=dict(given.about))
        for line in given.lines:
            folder.log(**line)
        folder.write_spectra(spectra)
        for name, path in files.items():
            (folder.path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder.path / name)
        folder.finish(**given.result)
        sealed = {id: folder.seal(store=store.id, claim=number)}
        claim = store.claim(number)
        claim.flush()
        table = claim.write_table([folder])
        results = {id: folder.result()}
        if not store.log.end(number, "commit", results=results, files=sealed, table=table):
            raise ValueError(f"{store}: trial {id}: its claim was revoked; add it again")
    store.claim(number).place()
    return id


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that are kept."""
    found = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    if not any(path.suffix == ".safetensors" for path in found):
        found += [path for pattern in PICKLED for path in sorted(folder.glob(pattern))]
    adapters = [path for path in found if path.name.startswith("adapter_")]
    found = adapters if (folder / CONFIG).is_file() and adapters else found
    return [*found, *(folder / name for name in BESIDE if (folder / name).is_file())]


def _is_there(store: Keeps, given: Added, files: Mapping[str, Path]) -> bool:
    """Whether the store holds exactly this. ``ValueError`` where it holds another trial of the same
    settings."""
    store.log.refresh()
    commit = store.log.done.get(given.trial.id)
    if commit is None or commit.files is None:
        return False
    text = "".join(_json(line) for line in given.lines)
    digests = {name: _sha256(path) for name, path in files.items()}
    if text:
        digests[METRICS] = hashlib.sha256(text.encode()).hexdigest()
    for name, digest in digests.items():
        if name not in commit.files or commit.files[name][2] != digest:
            raise ValueError(
                f"{store}: it holds a trial of these settings ({given.trial.id}) with another "
                f"{name}. Say what differs, such as seed="
            )
    return True


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps({k: finite(v) for k, v in line.items()}, allow_nan=False) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _claimed(store: Keeps, id: str) -> Iterator[int]:
    """A claim on the trial. One whose process is dead is taken from it; ``ValueError`` where
    another process adds it now."""
    lock = WorkerLock()
    try:
        store.log.refresh()
        held = store.log.holder(id)
        # also one that lived before this machine's last start
        if held is not None and held.host == lock.host and is_gone(held) is not False:
            store.log.end(held.number, "revoke", by=lock.worker)
        claim = store.log.claim([id], worker=lock.worker, host=lock.host, boot=lock.boot)
        if claim is None:
            raise ValueError(f"{store}: trial {id}: another process is adding it")
        try:
            yield claim
        finally:
            if claim in store.log.live:
                store.log.end(claim, "release")
                store.storage.remove(f"work/{claim}")
    finally:
        lock.leave(holding=False)


def _measured(store: Keeps, given: Added) -> pd.DataFrame:
    from rankscope.measurement.checkpoint_spectra import spectra_on
    from rankscope.weights.hub import fingerprint

    if given.base is None and given.trial.method == "full":
        raise ValueError('base: expected the pretrained model with method = "full"; found none')
    targets = given.trial.target_modules if given.trial.method == "full" else None
    mark = None if given.base is None else fingerprint(given.base)
    found = spectra_on(given.base, mark).of(given.weights, targets=targets)
    if mark is not None:
        add_fingerprint(store.storage, f"model/{given.trial.model}", mark)
    return found
