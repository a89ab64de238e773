"""Determines how a run was trained: from its own files, from the user's map, from its folder's
name.

Where several sources give a value, the first counts: the map, training_args.bin, files of arguments
(args.json, training_args.yaml, axolotl's config.yml), a model card (README.md), the folder's name.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import yaml

from rankscope.collect.history import number
from rankscope.collect.runs import ARGS, Run
from rankscope.collect.training_args import training_args
from rankscope.study.trial import Optimizer, Schedule, Trial

TEXT_BYTES = 2**20
# name in a trainer's arguments -> in a trial
NAMES = {
    "learning_rate": "learning_rate",
    "seed": "seed",
    "weight_decay": "weight_decay",
    "warmup_ratio": "warmup_ratio",
    "lr_scheduler_warmup_ratio": "warmup_ratio",
    "max_grad_norm": "max_grad_norm",
    "adam_epsilon": "adam_epsilon",
    "lr_scheduler_type": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_length": "max_length",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
}
WHOLE = ("seed", "max_length")
BATCH = ("per_device_train_batch_size", "micro_batch_size", "train_batch_size")
FILES = ("args.json", "training_args.json", "training_args.yaml")
AXOLOTL = ("axolotl_config.yaml", "axolotl_config.yml", "config.yaml", "config.yml")
END = r"(?=$|[-_./+,])"
START = r"(?:^|[-_./+,])"
PATTERNS = {
    "learning_rate": (
        rf"{START}(?:lr|learning[-_]?rate|rate)[-_=]?(\d+(?:\.\d+)?(?:e[-+]?\d+)?){END}"
    ),
    "seed": rf"{START}seed[-_=]?(\d+){END}",
}
# the map's own columns, beside the settings of a trial
COLUMNS = (
    "path", "metrics", "metric", "base", "step", "greater_is_better", "constant", "untrained",
)  # fmt: skip
TRUTHS = ("greater_is_better", "init_lora_weights", "use_dora")


@dataclass
class Said:
    """``settings`` of a trial; ``trainer``: the trainer's own arguments, as far as known."""

    settings: dict[str, Any]
    trainer: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def best_loaded(self) -> bool | None:
        """Whether the best weights were loaded back at the end; None if unknown."""
        value = self.trainer.get("load_best_model_at_end")
        return value if isinstance(value, bool) else None


def said_of(run: Run, mapped: Mapping[str, Any], *, root: Path) -> Said:
    """What is known of a run. ``root``: the path that was typed; folders' names below it count."""
    found = Said({})
    trainer: dict[str, Any] = {}
    for own in _sources(run, found):
        trainer = own | trainer
    found.trainer = trainer
    by_name = _by_name(run.path, root)
    settings = by_name | _settings(trainer)
    if "learning_rate" not in settings and (rate := _constant_rate(run)) is not None:
        settings["learning_rate"] = rate
        found.notes.append("learning rate: taken from the log, where it never changed")
    settings |= _warmup(trainer, settings, run)
    optimizer = str(trainer.get("optim", trainer.get("optimizer", "adamw"))).lower()
    if optimizer in get_args(Optimizer):
        settings["optimizer"] = optimizer
    elif "adam" not in optimizer:
        found.notes.append(f"optimizer {optimizer[:40]}: unknown here; recorded as adamw")
    given = {k: v for k, v in mapped.items() if k not in COLUMNS}
    found.settings = settings | given
    return found


def _sources(run: Run, found: Said) -> Iterator[dict[str, Any]]:
    """The trainer's arguments from each file that has them, the most trusted first."""
    if run.args is not None:
        try:
            yield training_args(run.args / ARGS)
        except ValueError as error:
            found.notes.append(str(error))
    places = [run.path, *(run.weights[step] for step in sorted(run.weights, reverse=True))]
    for name in (*FILES, *AXOLOTL):
        for place in places:
            if text := _text(place / name):
                own = _mapping(text)
                yield own if name in FILES or "base_model" in own else {}
                break
    for place in places:
        if text := _text(place / "README.md"):
            yield _model_card(text)
            break


def _text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > TEXT_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _mapping(text: str) -> dict[str, Any]:
    """JSON or YAML, without Python tags; empty for anything else."""
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        return {}
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}


def _model_card(text: str) -> dict[str, Any]:
    """The list of hyperparameters that Trainer writes, and axolotl's configuration."""
    found: dict[str, Any] = {}
    for name, value in re.findall(r"^- (\w+): (\S.*)$", text, re.MULTILINE):
        found.setdefault(name, number(value) if number(value) is not None else value.strip())
    for block in re.findall(r"^```ya?ml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if "base_model:" in block:
            found = _mapping(block) | found
    return found


def _settings(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's settings from a trainer's arguments; values of another kind are left out."""
    found: dict[str, Any] = {}
    for theirs, ours in NAMES.items():
        value = trainer.get(theirs)
        if ours == "lr_scheduler_type":
            if value in get_args(Schedule):
                found.setdefault(ours, value)
        elif (known := number(value)) is not None:
            found.setdefault(ours, int(known) if ours in WHOLE else known)
    betas = [number(trainer.get(name)) for name in ("adam_beta1", "adam_beta2")]
    if None not in betas:
        found["adam_betas"] = tuple(betas)
    steps = number(trainer.get("max_steps"))
    if steps is not None and steps > 0:
        found["steps"] = int(steps)
        found.pop("epochs", None)
    batch = next((b for name in BATCH if (b := number(trainer.get(name))) is not None), None)
    if batch is not None:
        found["batch_size"] = int(batch * (number(trainer.get("gradient_accumulation_steps")) or 1))
    if (whole := number(trainer.get("total_train_batch_size"))) is not None:
        found["batch_size"] = int(whole)  # over all devices, as a model card has it
    if trainer.get("bf16") is True:
        found["precision"] = "bfloat16"
    return found


def _warmup(
    trainer: Mapping[str, Any], settings: Mapping[str, Any], run: Run
) -> dict[str, float | None]:
    """Steps of warmup as a share of all: they count before a ratio, as Trainer has it; below 1 they
    are a share. None where the number of all steps is unknown."""
    warmup = number(trainer.get("warmup_steps"))
    if warmup is None or (warmup == 0 and settings.get("warmup_ratio") is not None):
        return {}
    total = settings.get("steps") or number(run.state.get("max_steps"))
    share = warmup if warmup < 1 else warmup / total if total else None
    return {"warmup_ratio": share}


def _by_name(path: Path, root: Path) -> dict[str, Any]:
    """``lr1e-4`` and ``seed-3`` in folders' names; the last of each counts."""
    try:
        text = str(path.resolve().relative_to(root.resolve().parent))
    except ValueError:
        text = path.name
    found: dict[str, Any] = {}
    for name, pattern in PATTERNS.items():
        if hits := re.findall(pattern, text.lower()):
            found[name] = int(hits[-1]) if name == "seed" else float(hits[-1])
    return found


def _constant_rate(run: Run) -> float | None:
    """The learning rate, if at least three lines logged it and all agree."""
    logged = [number(e.get("learning_rate")) for e in run.state.get("log_history", [])]
    rates = [rate for rate in logged if rate]
    return rates[0] if len(rates) >= 3 and len(set(rates)) == 1 else None


def read_map(path: str | Path) -> dict[Path, dict[str, Any]]:
    """The user's map: a CSV with a column ``path`` (of a run's folder; relative ones start beside
    the map, or here) and columns of settings. ``ValueError``, one line, for anything else."""
    place = Path(path).expanduser()
    try:
        table = pd.read_csv(place, dtype=str, keep_default_na=False)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"{path}: expected a CSV with a column path; {reason}") from None
    known = [*COLUMNS, *Trial.model_fields]
    for name in table.columns:
        if name not in known:
            raise ValueError(f"{path}: {name}: unknown column; expected one of {', '.join(known)}")
    if "path" not in table:
        raise ValueError(f"{path}: expected a column path; found {', '.join(table.columns)}")
    found: dict[Path, dict[str, Any]] = {}
    for line in table.to_dict("records"):
        values = {str(k): _typed(str(k), v) for k, v in line.items() if str(v).strip()}
        own = Path(str(values.pop("path", ""))).expanduser()
        folder = next((p for p in (place.parent / own, own) if p.is_dir()), None)
        if folder is None or str(own) == ".":
            raise ValueError(f"{path}: path {str(own)!r}: expected a run's folder; found none")
        if folder.resolve() in found:
            raise ValueError(f"{path}: path {str(own)!r}: expected each run once")
        if "metrics" in values:
            beside = place.parent / values["metrics"]
            values["metrics"] = str(beside if beside.exists() else values["metrics"])
        found[folder.resolve()] = values
    return found


def _typed(name: str, text: str) -> Any:
    """A cell in its setting's type; what does not fit stays text, which the trial refuses."""
    text = text.strip()
    if name in ("target_modules", "adam_betas"):
        parts = [part.strip() for part in text.strip("[]()").split(",")]
        return (
            [float(p) for p in parts] if name == "adam_betas" else [p.strip("'\"") for p in parts]
        )
    if name == "rank_pattern":
        with contextlib.suppress(ValueError):
            return json.loads(text)
        return text
    if name in TRUTHS and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if name in ("model", "task", "method", "scaling", "metric", "base", "metrics", "path"):
        return text
    value = number(text)
    if value is None:
        return text
    return int(value) if value == int(value) and name not in ("learning_rate",) else value
