"""What a run logged, line by line -> one row per evaluation, each value at its own step.

Trainers log losses and evaluations at different steps, and evaluate once more when training has
ended, perhaps with the best weights loaded back: such a value belongs to no step that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

STEPS = ("step", "train_global_step", "global_step", "current_steps", "_step", "iteration")
# logged with an evaluation, but not measures of the model
_NOT_METRICS = (
    "runtime", "samples_per_second", "steps_per_second", "jit_compilation_time",
    "model_preparation_time", "num_tokens",
)  # fmt: skip


@dataclass
class History:
    """``frame``: a row per evaluation, with ``step``, ``epoch``, ``train_loss`` where it was logged
    at that step, and the metrics by their names without ``eval_``. ``before``: those before the
    first step, which are of no update. ``seconds`` of training."""

    frame: pd.DataFrame
    losses: int = 0
    before: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)


def history(entries: Iterable[Mapping[str, Any]], *, best_loaded: bool | None = False) -> History:
    """Joins the lines that a trainer logged by their steps.

    ``best_loaded``: whether the best weights were loaded back at the end of training, so that later
    evaluations belong to another step. None: unknown; later evaluations are then left out.
    """
    rows: dict[int, dict[str, float]] = {}
    losses: dict[int, float] = {}
    found = History(pd.DataFrame(columns=["step"]))
    entries = list(entries)
    prefix = _prefix(entries, found.notes)
    ended, after, twice, reached = False, 0, 0, 0
    resumed: set[int] = set()
    for entry in entries:
        if "train_runtime" in entry:
            ended, found.seconds = True, number(entry["train_runtime"])
            continue
        step = step_of(entry)
        if step is None:
            continue
        metrics, loss = _metrics(entry, prefix), _train_loss(entry)
        ended = ended and loss is None  # training went on
        if step < reached and not ended:  # those later steps were trained again
            resumed.add(step)
            rows = {s: row for s, row in rows.items() if s < step}
            losses = {s: value for s, value in losses.items() if s < step}
        reached = step
        if metrics and ended and best_loaded is not False:
            after += 1
            continue
        if metrics:
            row = rows.setdefault(step, {})
            twice += sum(name in row and row[name] != value for name, value in metrics.items())
            rows[step] = metrics | row  # the first counts
            if (epoch := number(entry.get("epoch"))) is not None:
                rows[step].setdefault("epoch", epoch)
        if loss is not None:
            losses.setdefault(step, loss)
    if after:
        found.notes.append(
            f"{after} evaluation{'s' * (after > 1)} after training left out: the best weights may "
            "have been loaded back by then"
        )
    if resumed:
        said = ", ".join(map(str, sorted(resumed)))
        found.notes.append(
            f"resumed before step {said}: of what was logged twice after it, the later value counts"
        )
    if twice:
        found.notes.append(f"{twice} values were logged twice at one step: the first is taken")
    found.before = {k: v for k, v in rows.pop(0, {}).items() if k != "epoch"}
    lines = [{"step": s, "train_loss": losses.get(s), **row} for s, row in sorted(rows.items())]
    found.losses = len(losses)
    if lines:
        found.frame = pd.DataFrame(lines)
    return found


def step_of(entry: Mapping[str, Any]) -> int | None:
    """The step that a line was logged at."""
    for name in STEPS:
        value = number(entry.get(name))
        if value is not None and value >= 0 and value == int(value):
            return int(value)
    return None


def number(value: Any) -> float | None:
    """A finite number, also from text; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _prefix(entries: Iterable[Mapping[str, Any]], notes: list[str]) -> str:
    """The prefix of evaluations' names: eval; if no name has it, the ``metric_key_prefix`` that the
    run gave to Trainer, as seen in its ``*_runtime``."""
    keys = {str(key).replace("/", "_") for entry in entries for key in entry}
    ends = {key.removesuffix("_runtime") for key in keys if key.endswith("_runtime")}
    others = sorted(ends - {"train"})
    if not others or any(key.startswith("eval_") for key in keys):
        return "eval"
    if len(others) > 1:
        notes.append(
            f"evaluations are named {', '.join(f'{one}_*' for one in others)}, none eval_*: not "
            "taken; a column metrics of --map names a table of those that count"
        )
        return "eval"
    notes.append(f"evaluations are named {others[0]}_*: taken as eval_*")
    return others[0]


def _metrics(entry: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found = {}
    for key, value in entry.items():
        name = str(key).replace("/", "_")
        if name.startswith(f"{prefix}_"):
            name = f"eval_{name.removeprefix(f'{prefix}_')}"
        if not name.startswith("eval_") or name.removeprefix("eval_") in _NOT_METRICS:
            continue
        if any(name.endswith(f"_{end}") for end in _NOT_METRICS):
            continue
        if (known := number(value)) is not None:
            short = name if name == "eval_loss" else name.removeprefix("eval_")
            found[short] = known
    return found


def _train_loss(entry: Mapping[str, Any]) -> float | None:
    for name in ("loss", "train/loss"):
        if (value := number(entry.get(name))) is not None:
            return value
    return None


_LISTED = 6
KNOWN = ("matthews_correlation", "pearson", "spearman", "accuracy", "f1", "f1_macro")


def metric_of(frame: pd.DataFrame, asked: str | None, said: str | None, notes: list[str]) -> str:
    """The metric that chooses checkpoints: the one asked for; the one that the run names; its only
    one of ``KNOWN``; its loss; else the first, with a note. ``ValueError`` if it lacks the one
    asked for."""
    names = [str(name) for name in frame.columns if name not in ("step", "epoch", "train_loss")]
    for name in (asked, said):
        if name is None:
            continue
        short = name.replace("/", "_").removeprefix("eval_")
        for candidate in (name, short, f"eval_{short}"):
            if candidate in names:
                return candidate
        if name is asked and names:
            raise ValueError(f"--metric: expected one of {', '.join(names)}; found {asked!r}")
    known = [name for name in KNOWN if name in names]
    if len(known) == 1:
        return known[0]
    if "eval_loss" in names or not names:
        others = [name for name in names if name not in (*KNOWN, "eval_loss", "is_constant")]
        if others and not known:
            listed = ", ".join(others[:_LISTED]) + ", ..." * (len(others) > _LISTED)
            notes.append(f"metric: eval_loss taken; also logged: {listed}; --metric decides")
        return "eval_loss"
    if len(names) > 1:
        notes.append(f"metric: {names[0]} taken out of {', '.join(names)}; --metric decides")
    return names[0]
