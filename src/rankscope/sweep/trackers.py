"""``report_to`` in a study file: finished trials as runs of TensorBoard, W&B, MLflow and Trackio.

A trial is logged by the worker that trained it, once it is committed, through the tracker's own
client: its environment variables (``WANDB_MODE``, ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME``, ``TRACKIO_PROJECT`` ...) apply. Training is not affected.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.console import message
from rankscope.store.trial_dir import SPECTRA, TrialDir

FOLDER = "tensorboard"  # in the store
_MATRICES = {"dW": "stable_rank/dW", "W+dW": "stable_rank/tuned"}  # MLflow takes no plus sign


@dataclass(frozen=True)
class Logged:
    """A finished trial's metrics and spectra. ``points``: step -> name -> value; ``settings``: the
    trial's configuration, each value a string, a number or a bool."""

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


class TensorBoard:
    """A folder of event files a trial, in ``<store>/tensorboard/<trial>/``; what a trial that was
    trained before left there is replaced."""

    def __init__(self, study: str, store: Path) -> None:
        self.folder = store / FOLDER

    def log(self, run: Logged) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder / run.trial
        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(str(folder)) as writer:
            writer.add_text("settings", f"    {json.dumps(run.settings)}")  # verbatim in Markdown
            for step, name, value in _rows(run):
                writer.add_scalar(name, value, step)


class WandB:
    """A run a trial, in the project ``WANDB_PROJECT``, else of the study's name."""

    def __init__(self, study: str, store: Path) -> None:
        self.project = os.environ.get("WANDB_PROJECT") or study

    def log(self, run: Logged) -> None:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", login_timeout=30)
        with wandb.init(
            project=self.project, name=run.trial, config=dict(run.settings), settings=quiet
        ) as session:
            for step, values in sorted(run.points.items()):
                session.log(values, step=step)


class MLflow:
    """A run a trial, in the experiment ``MLFLOW_EXPERIMENT_NAME``, else of the study's name."""

    AT_ONCE = 1000, 100  # metrics and parameters per request

    def __init__(self, study: str, store: Path) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or study
        known = self.client.get_experiment_by_name(name)
        self.experiment = known.experiment_id if known else self.client.create_experiment(name)

    def log(self, run: Logged) -> None:
        from mlflow.entities import Metric, Param

        metrics, params = self.AT_ONCE
        points = [Metric(name, value, step, step) for step, name, value in _rows(run)]
        settings = [Param(key, str(value)) for key, value in run.settings.items()]
        id = self.client.create_run(self.experiment, run_name=run.trial).info.run_id
        for start in range(0, len(settings), params):
            self.client.log_batch(id, params=settings[start : start + params])
        for start in range(0, len(points), metrics):
            self.client.log_batch(id, metrics=points[start : start + metrics])
        self.client.set_terminated(id)


class Trackio:
    """A run a trial, in the project ``TRACKIO_PROJECT``, else of the study's name."""

    def __init__(self, study: str, store: Path) -> None:
        self.project = os.environ.get("TRACKIO_PROJECT") or study

    def log(self, run: Logged) -> None:
        import trackio

        with contextlib.redirect_stdout(sys.stderr):  # it prints a greeting to standard output
            session = trackio.init(
                project=self.project,
                name=run.trial,
                config=dict(run.settings),
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            for step, values in sorted(run.points.items()):
                session.log(values, step=step)
            trackio.finish()


KINDS: dict[str, Callable[[str, Path], Any]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def _rows(run: Logged) -> Iterable[tuple[int, str, float]]:
    for step, values in sorted(run.points.items()):
        for name, value in values.items():
            yield step, name, value


def check(names: Sequence[str], study: str, store: str | Path) -> None:
    """``ValueError``, one line, if a tracker is not installed, can't be opened, or can't write
    into that store."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # no origin: a folder of that name, such as logs
            raise ValueError(
                f"report_to: {name!r} needs its library, which is not installed. "
                f"Type: pip install {name}"
            )
        if name == "tensorboard" and "://" in str(store):
            raise ValueError(
                f'report_to: "tensorboard" writes into the store, expected in a folder; found '
                f"{store}. Take another tracker, or a folder as --store"
            )
    if "mlflow" in names:  # also makes the experiment, and its database, before workers race for it
        try:
            MLflow(study, Path(str(store)))
        except Exception as error:  # noqa: BLE001 - a database, a server, a missing package
            raise ValueError(f'report_to: "mlflow" can\'t be opened: {message(error)}') from None


class Trackers:
    """The trackers of one worker. One that fails is reported once and not used again; training
    continues."""

    def __init__(
        self, names: Sequence[str], study: str, store: Path, say: Callable[[str], None]
    ) -> None:
        self.study, self.store, self.say = study, store, say
        self.left, self.opened = list(names), dict[str, Any]()

    def read(self, folders: Sequence[TrialDir]) -> Callable[[], None]:
        """Reads a pack's finished trials. Returns a function that logs them, to be called after
        their commit."""
        if not self.left:
            return lambda: None
        try:
            runs = [Logged.of(folder) for folder in folders]
        except Exception as error:  # noqa: BLE001 - training goes on
            line = f"report_to: a pack is not logged: {message(error)}"
            return lambda: self.say(line)
        return lambda: self._log(runs)

    def _log(self, runs: Sequence[Logged]) -> None:
        for name in list(self.left):
            try:
                if name not in self.opened:
                    self.opened[name] = KINDS[name](self.study, self.store)
                for run in runs:
                    self.opened[name].log(run)
            except Exception as error:  # noqa: BLE001 - training goes on
                self.left.remove(name)
                self.say(
                    f"report_to: {name} has failed, and logs nothing from here on: "
                    f"{type(error).__name__}: {message(error)}"
                )
