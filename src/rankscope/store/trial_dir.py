"""The folder of one trial: what is written there, in which order, and what makes it a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.store.files import finite, read_json, write_json
from rankscope.study.trial import Trial

TRIAL, METRICS, SPECTRA, DONE = "trial.json", "metrics.jsonl", "spectra.parquet", "done.json"
RECORDS = (
    TRIAL,
    METRICS,
    SPECTRA,
    DONE,
)  # small, and what tables are made of; the other files are weights
_SEAL = ("files", "store", "claim")  # what a worker adds to done.json before its commit


def result_in(done: dict[str, Any]) -> dict[str, Any]:
    """What done.json says of the training itself."""
    return {key: value for key, value in done.items() if key not in ("format", *_SEAL)}


def digests(folder: Path) -> dict[str, list[Any]]:
    """Name of each file below that folder -> size, time of the last change in nanoseconds,
    SHA-256."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            seen = path.stat()
            found[path.relative_to(folder).as_posix()] = [
                seen.st_size,
                seen.st_mtime_ns,
                sha256(path),
            ]
    return found


def unlike_versions(said: Iterable[Mapping[str, Any]]) -> str | None:
    """One line if these trials, or entries of ``Store.provenance``, name several ``versions`` of
    the same program. Those that name none were trained elsewhere."""
    found = [entry["versions"] for entry in said if entry.get("versions")]
    values = {
        name: sorted({str(entry.get(name, "not recorded")) for entry in found})
        for name in sorted({name for entry in found for name in entry})
    }
    unlike = [f"{name} {', '.join(each)}" for name, each in values.items() if len(each) > 1]
    if not unlike:
        return None
    return (
        f"Trials were trained by unlike versions ({'; '.join(unlike)}; trial.json says which): "
        "settings are not all that differs between them."
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TrialDir:
    """A result once ``done.json`` is there, which is written last. Training writes into one
    that nobody else sees; it becomes ``<store>/trials/<id>/``, all at once, when its
    worker's claim is committed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_done(self) -> bool:
        return (self.path / DONE).is_file()

    def begin(self, trial: Trial, *, provenance: dict[str, Any]) -> None:
        """Says what is to be trained here."""
        self.path.mkdir(parents=True)
        write_json(
            self.path / TRIAL,
            {"id": trial.id, "trial": trial.model_dump(mode="json"), **provenance},
        )

    def amend(self, **more: Any) -> None:
        """Says more about how this trial was trained."""
        known = read_json(self.path / TRIAL) if (self.path / TRIAL).is_file() else {}
        write_json(self.path / TRIAL, {k: v for k, v in known.items() if k != "format"} | more)

    def log(self, **evaluation: float | int | None) -> None:
        """One more line of metrics.jsonl; a number that is not finite becomes null."""
        line = {key: finite(value) for key, value in evaluation.items()}
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def write_spectra(self, spectra: pd.DataFrame) -> None:
        spectra.to_parquet(self.path / SPECTRA, index=False)

    def finish(self, **result: Any) -> None:
        """Makes the folder a result. Everything else must be written by now."""
        write_json(self.path / DONE, {key: finite(value) for key, value in result.items()})

    def trial(self) -> dict[str, Any]:
        return read_json(self.path / TRIAL)["trial"]

    def machine(self) -> dict[str, Any]:
        """What it was trained on."""
        return read_json(self.path / TRIAL).get("machine", {})

    def result(self) -> dict[str, Any]:
        """Status, metric, its best and last value, steps, seconds."""
        return result_in(read_json(self.path / DONE))

    def seal(self, *, store: str, claim: int) -> dict[str, list[Any]]:
        """Adds to done.json the digests of all other files, and where the trial belongs: should the
        log be lost, the trial speaks for itself. -> what the commit says of its files:
        name -> size, time of the last change, SHA-256"""
        files = digests(self.path)
        files.pop(DONE)
        own = {name: digest for name, (_, _, digest) in files.items()}
        write_json(
            self.path / DONE, {**self.result(), "files": own, "store": store, "claim": claim}
        )
        return digests(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        path = self.path / METRICS
        return (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.is_file()
            else []
        )
