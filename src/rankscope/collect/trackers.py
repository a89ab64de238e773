"""Reads the metrics that trackers logged, as lines with the trainer's names.

CSV, TSV and JSON lines are read here; TensorBoard's event files, offline runs of W&B and folders of
MLflow by their own libraries, imported where such a file is met.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.collect.history import STEPS
from rankscope.collect.wandb_file import messages

BYTES = 2**30
TABLES = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".json")
# files looked for in a run's folder if the trainer's state has no metrics
NAMES = ("metrics.csv", "metrics.jsonl", "trainer_log.jsonl", "eval_log.jsonl", "metrics.tsv")
Lines = list[dict[str, Any]]
# prefixes of what is no evaluation: training, and the spectra that `report_to` logs
_OTHERS = ("train_", "stable_rank_", "update_")
# columns that are not measures of the model
PLAIN = (
    *STEPS, "epoch", "loss", "train_loss", "learning_rate", "lr", "grad_norm", "percentage",
    "total_steps", "_runtime", "_timestamp", "elapsed_time", "remaining_time",
)  # fmt: skip


def logged_in(folder: Path) -> Path | None:
    """The first of ``NAMES`` in a run's folder, else a tracker's folder."""
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    events = sorted(folder.glob("runs/**/events.out.tfevents.*"))
    events += sorted(folder.glob("events.out.tfevents.*"))
    if events:
        return events[0].parent
    return next((p for p in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))), None)


def entries_of(path: Path) -> Lines:
    """The logged lines of one run. ``ValueError``, one line, for anything that is not read here."""
    if path.is_dir():
        if any(path.glob("events.out.tfevents.*")):
            return list(_merged(_tensorboard(path)))
        if (path / "meta.yaml").is_file() and (path / "metrics").is_dir():
            return list(_merged(_mlflow(path)))
        inside = next(iter(sorted(path.glob("run-*.wandb"))), None)
        if inside is not None:
            return entries_of(inside)
        raise ValueError(
            f"{path}: expected TensorBoard's event files, a run of MLflow or of W&B; found none"
        )
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of metrics; found none")
    if path.stat().st_size > BYTES:
        raise ValueError(f"{path}: expected at most {BYTES} bytes of metrics")
    if path.suffix in TABLES:
        return _table(path)
    if path.suffix in LINES:
        return _json_lines(path)
    if path.suffix == ".wandb":
        return _wandb(path)
    if ".tfevents." in path.name:
        return list(_merged(_tensorboard(path.parent)))
    raise ValueError(
        f"{path}: expected CSV, TSV, JSON lines, TensorBoard's event files, W&B's or MLflow's "
        "folder"
    )


def _table(path: Path) -> Lines:
    try:
        table = pd.read_csv(path, sep=TABLES[path.suffix])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a table; {' '.join(str(error).split())}") from None
    return [_words(line) for line in table.to_dict("records")]


def _json_lines(path: Path) -> Lines:
    found: Lines = []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text.lstrip()[:1] == "["
    try:
        lines = json.loads(text) if whole else [json.loads(x) for x in text.splitlines() if x]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected one JSON object per line; {error}") from None
    for line in lines:
        if not isinstance(line, dict):
            raise ValueError(f"{path}: expected one JSON object per line; found {line!r:.40}")
        found.append(_words({str(k): v for k, v in line.items()}))
    return found


def _words(line: dict[Any, Any]) -> dict[str, Any]:
    """One line with Trainer's names: ``loss`` for training, ``eval_`` before evaluations. In a
    table without such prefixes all columns but the known ones are evaluations."""
    found: dict[str, Any] = {}
    marked = any(re.match(r"(eval|val|valid|validation)[_/]", str(key)) for key in line)
    for key, value in line.items():
        name = str(key).replace("/", "_")
        for prefix in ("validation_", "valid_", "val_"):
            if name.startswith(prefix):
                name = f"eval_{name.removeprefix(prefix)}"
        if name == "train_loss":
            name = "loss"
        if name not in PLAIN and not marked and not name.startswith(_OTHERS):
            name = f"eval_{name}"
        found[name] = value
    return found


def _merged(points: Iterator[tuple[int, str, float]]) -> Iterator[dict[str, Any]]:
    """Points (step, name, value) as lines, one per step; of several values of one name at one step
    the first counts."""
    lines: dict[int, dict[str, Any]] = {}
    for step, name, value in points:
        lines.setdefault(step, {}).setdefault(name, value)
    for step, line in sorted(lines.items()):
        yield _words({"step": step} | line)


def _needs(place: Path, package: str) -> ValueError:
    return ValueError(
        f"{place}: expected the package {package}, which reads it; found none. Type: pip install "
        f"{package}"
    )


def _tensorboard(folder: Path) -> Iterator[tuple[int, str, float]]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise _needs(folder, "tensorboard") from None
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    tags = found.Tags()
    for tag in tags.get("scalars", []):
        for event in found.Scalars(tag):
            yield int(event.step), tag, float(event.value)
    for tag in tags.get("tensors", []):
        for event in found.Tensors(tag):
            values = event.tensor_proto.float_val
            if len(values) == 1:
                yield int(event.step), tag, float(values[0])


def _mlflow(folder: Path) -> Iterator[tuple[int, str, float]]:
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise _needs(folder, "mlflow") from None
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions require it
    client = MlflowClient(tracking_uri=folder.parent.parent.resolve().as_uri())
    for name in sorted(client.get_run(folder.name).data.metrics):
        for point in client.get_metric_history(folder.name, name):
            yield int(point.step), name, float(point.value)


def _wandb(path: Path) -> Lines:
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError:
        raise _needs(path, "wandb") from None
    found: Lines = []
    for content in messages(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") != "history":
            continue
        line = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if "train/global_step" in line:
            line["step"] = line.pop("train/global_step")
        found.append(_words(line))
    return found
