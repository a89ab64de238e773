"""What trackers log of a finished trial: its metrics and spectra by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from rankscope.store.trial_dir import SPECTRA, TrialDir

_MATRICES = {"dW": "stable_rank/dW", "W+dW": "stable_rank/tuned"}  # MLflow takes no plus sign


@dataclass(frozen=True)
class Logged:
    """``points``: step -> name -> value. ``settings``: the trial's, each a text, a number or a
    truth."""

    trial: str
    settings: dict[str, str | int | float]
    points: dict[int, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: TrialDir) -> Logged:
        """Reads a trial's folder. Names: ``train/loss``, ``train/epoch``; ``eval/loss`` and
        ``eval/<metric>``; medians over layers ``stable_rank/dW``, ``stable_rank/tuned`` (of
        W + dW), ``update/rho`` and ``update/drift``, as ``analysis.drift`` has them. Unknown and
        non-finite values are left out."""
        found = cls(folder.path.name, _plain(folder.trial()))
        for line in folder.metrics():
            for name, value in line.items():
                found._add(line["step"], _name(name), value)
        if (folder.path / SPECTRA).is_file():
            found._add_spectra(pd.read_parquet(folder.path / SPECTRA))
        return found

    def _add(self, step: int, name: str | None, value: Any) -> None:
        if name is not None and value is not None and math.isfinite(value):
            self.points.setdefault(int(step), {})[name] = float(value)

    def _add_spectra(self, spectra: pd.DataFrame) -> None:
        from rankscope.analysis.drift import drift, known  # brings scipy

        table = known(spectra.assign(trial=self.trial))
        for matrix, name in _MATRICES.items():
            rows = table[table["matrix"].eq(matrix)]
            for step, value in rows.groupby("step")["stable_rank"].median().items():
                self._add(int(str(step)), name, value)
        for row in drift(table).to_dict("records"):
            self._add(row["step"], "update/rho", row["rho"])
            self._add(row["step"], "update/drift", row["log_drift"])


def _name(key: str) -> str | None:
    """A key of metrics.jsonl as trackers group it."""
    if key == "step":
        return None
    if key in ("epoch", "train_loss"):
        return f"train/{key.removeprefix('train_')}"
    return f"eval/{key.removeprefix('eval_')}"


def _plain(trial: dict[str, Any]) -> dict[str, str | int | float]:
    return {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in trial.items()
        if value is not None
    }
