"""Finds runs in trainers' output folders: the weights that were saved, by step, and the trainer's
state."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE, ARGS, ADAPTER = "trainer_state.json", "training_args.bin", "adapter_config.json"
WEIGHTS = (
    "adapter_model.safetensors", "adapter_model.bin", "model.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
DEPTH = 4  # levels of folders below a PATH that are searched for runs
STATE_BYTES = 2**28
HEADER_BYTES = 2**25  # of a safetensors file


@dataclass
class Run:
    """One training run. ``weights``: step -> folder; ``state``: of trainer_state.json, the latest;
    ``args``: the folder of training_args.bin."""

    path: Path
    weights: dict[int, Path] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    args: Path | None = None
    unplaced: Path | None = None  # weights whose step no file names
    notes: list[str] = field(default_factory=list)

    @property
    def is_lora(self) -> bool:
        folders = [*self.weights.values(), *([self.unplaced] if self.unplaced else [])]
        return any((folder / ADAPTER).is_file() for folder in folders)


def runs(paths: Sequence[str | Path]) -> list[Path]:
    """The folders of runs at or below these paths, each once, in the order of their names.
    ``ValueError``, one line, if there is none at or below a path."""
    found: dict[Path, Path] = {}
    for path in paths:
        folder = Path(path).expanduser()
        below = list(_below(folder, DEPTH)) if folder.is_dir() else []
        if not below:
            raise ValueError(
                f"{path}: expected the output folder of a trainer (checkpoint-N, {ADAPTER} or "
                f"{WEIGHTS[2]}), or one of such folders; found "
                f"{'none in it' if folder.is_dir() else 'no folder'}"
            )
        for one in below:
            found.setdefault(one.resolve(), one)
    return list(found.values())


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if has_weights(folder) or any(CHECKPOINT.fullmatch(path.name) for path in _folders(folder)):
        yield folder
        return
    if depth:
        for path in _folders(folder):
            yield from _below(path, depth - 1)


def _folders(folder: Path) -> list[Path]:
    """The folders inside; links are not followed: they may lead anywhere."""
    inside = (p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    return sorted(p for p in inside if not p.name.startswith("."))


def _adapters_in(checkpoint: Path) -> list[Path]:
    """Adapters with names other than "default": PEFT saves each in a folder of its own inside."""
    return [p for p in _folders(checkpoint) if (p / ADAPTER).is_file() and has_weights(p)]


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def cut_off(folder: Path) -> str | None:
    """Why a checkpoint's weights are incomplete, for instance because training was killed while
    saving them; None if they look whole."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if size <= HEADER_BYTES else b""
        try:
            parts = [value for key, value in json.loads(header).items() if key != "__metadata__"]
            end = max((part["data_offsets"][1] for part in parts), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{path.name} is cut off or damaged"
        if path.stat().st_size != 8 + size + end:
            return f"{path.name} is cut off or damaged"
    for path in folder.glob("*.index.json"):
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            named = json.loads(path.read_bytes()).get("weight_map", {}).values()
            gone = sorted({name for name in named if not (folder / str(name)).is_file()})
            if gone:
                return f"the shard {gone[0]} is missing"
    return None


def open_run(folder: Path) -> Run:
    """Opens a run: the weights that it saved, by the steps that its own files name."""
    run = Run(folder)
    states, saved = [state(folder)], dict[int, Path]()
    for path in _folders(folder):
        if not (match := CHECKPOINT.fullmatch(path.name)):
            continue
        own, step = state(path), int(match[1])
        states.append(own)
        saved[step] = path
        named = [] if has_weights(path) else _adapters_in(path)
        weights = named[0] if len(named) == 1 else path
        if len(named) > 1:
            run.notes.append(
                f"{path.name}: left out: {len(named)} adapters in it, "
                f"{', '.join(one.name for one in named)}; a run has one: copy it to a folder of "
                "its own"
            )
        elif not has_weights(weights):
            run.notes.append(f"{path.name}: no weights in it")
        elif (fault := cut_off(weights)) is not None:
            run.notes.append(f"{path.name}: left out: {fault}")
        elif own.get("global_step", step) != step:
            run.notes.append(f"{path.name}: left out: its {STATE} says step {own['global_step']}")
        else:
            run.weights[step] = weights
    run.state = max(states, key=lambda one: (_int(one.get("global_step")), len(_log(one))))
    places = [folder, *(saved[step] for step in sorted(run.weights, reverse=True))]
    run.args = next((place for place in places if (place / ARGS).is_file()), None)
    if has_weights(folder):
        _place_root(run, states[0])
    run.weights = dict(sorted(run.weights.items()))
    return run


def _place_root(run: Run, own: dict[str, Any]) -> None:
    """Places the weights in the output folder itself: at its own step if it is a checkpoint's
    folder; nowhere if they equal a checkpoint's; else they are ``unplaced``."""
    match = CHECKPOINT.fullmatch(run.path.name)
    if match and own.get("global_step", int(match[1])) == int(match[1]):
        run.weights[int(match[1])] = run.path
        return
    digest = _digest(run.path)
    if any(_digest(place) == digest for place in run.weights.values()):
        return
    run.unplaced = run.path


def place(run: Run, step: int | None, *, best_loaded: bool | None) -> None:
    """Assigns a step to ``unplaced`` weights: ``step`` if given; else the last one trained, if the
    best weights were not loaded back."""
    if run.unplaced is None:
        return
    if step is None and best_loaded is False:
        step = _int(run.state.get("global_step")) or None
    if step is None or step in run.weights:
        run.notes.append(
            "the weights in the folder itself are left out: no file names their step"
            if step is None
            else f"the weights in the folder itself are left out: checkpoint-{step} has others"
        )
    else:
        run.weights = dict(sorted({**run.weights, step: run.unplaced}.items()))
    run.unplaced = None


def is_language_model(run: Run) -> bool:
    """Whether what was trained has the head that it was pretrained with, by its configuration: its
    metric before training is then one to set out from."""
    folder = run.weights[max(run.weights)]
    if run.is_lora:
        return _json(folder / ADAPTER).get("task_type") in ("CAUSAL_LM", "SEQ_2_SEQ_LM")
    kinds = _json(folder / "config.json").get("architectures")
    ends = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
    return isinstance(kinds, list) and any(str(kind).endswith(ends) for kind in kinds)


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is none; whoever needs it says what is wrong with it."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= STATE_BYTES and isinstance(
            found := json.loads(path.read_bytes()), dict
        ):
            return found
    return {}


def state(folder: Path) -> dict[str, Any]:
    """trainer_state.json; empty if there is none. ``ValueError``, one line, if it is damaged."""
    path = folder / STATE
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > STATE_BYTES:
            raise ValueError(f"more than {STATE_BYTES} bytes")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not all(isinstance(x, dict) for x in _log(found)):
            raise ValueError("another kind of content")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a Trainer's state; found damage ({error})") from None
    return found


def _log(one: dict[str, Any]) -> list[Any]:
    found = one.get("log_history", [])
    if not isinstance(found, list):
        raise ValueError("its log_history is not a list")
    return found


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _digest(folder: Path) -> str:
    """SHA-256 of the weights in the folder."""
    digest = hashlib.sha256()
    for name in WEIGHTS:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
