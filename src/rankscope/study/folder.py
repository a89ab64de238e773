"""The folder of one trial: what is written there, in which order, and what makes it a result."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.study.files import read_json, write_json
from rankscope.study.plan import Trial

TRIAL, METRICS, SPECTRA, DONE, FAILED = (
    "trial.json",
    "metrics.jsonl",
    "spectra.parquet",
    "done.json",
    "failed.json",
)


class TrialFolder:
    """``<store>/trials/<id>/``. It is a result once ``done.json`` is there, which is written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_done(self) -> bool:
        return (self.path / DONE).is_file()

    @property
    def failure(self) -> str | None:
        """Why it failed, or None."""
        path = self.path / FAILED
        return None if self.is_done or not path.is_file() else read_json(path)["reason"]

    def begin(self, trial: Trial, *, provenance: dict[str, Any]) -> None:
        """Clears what an unfinished attempt left, and says what is to be trained here."""
        assert not self.is_done
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        write_json(self.path / TRIAL, {"id": trial.id, "trial": trial.model_dump(mode="json"), **provenance})

    def log(self, **evaluation: float | int | None) -> None:
        """One more line of metrics.jsonl; a number that is not finite becomes null."""
        line = {key: value if _finite(value) else None for key, value in evaluation.items()}
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def write_spectra(self, spectra: pd.DataFrame) -> None:
        spectra.to_parquet(self.path / SPECTRA, index=False)

    def finish(self, **result: Any) -> None:
        """Makes the folder a result. Everything else must be written by now."""
        write_json(self.path / DONE, {k: v if _finite(v) else None for k, v in result.items()})

    def fail(self, reason: str, *, trace: str) -> None:
        write_json(self.path / FAILED, {"reason": reason, "traceback": trace})

    def trial(self) -> dict[str, Any]:
        return read_json(self.path / TRIAL)["trial"]

    def result(self) -> dict[str, Any]:
        return {key: value for key, value in read_json(self.path / DONE).items() if key != "format"}

    def metrics(self) -> list[dict[str, Any]]:
        path = self.path / METRICS
        return (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.is_file()
            else []
        )


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
