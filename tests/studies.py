"""Study files for tests, written from their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = {"rank": [1, 2], "learning_rate": 1e-3, "batch_size": 8, "steps": 8, "eval_every": 4}
_SCIENTIFIC = {"method", "rank", "scaling"}
_LISTS = {"use_dora", "lora_alpha", "rank_pattern"}  # scientific where they are lists
_NUISANCE = {"learning_rate", "seed"}


def study_text(
    model: str | Path = "lab", task: Any = "acceptability", *, own: str = "", **settings: Any
) -> str:
    """TOML of a study. ``settings``: its keys, wherever they belong, None for none; by default
    those of ``SMALL``, and the lab's data for the lab's model. ``own``: text to follow, further
    keys of [fixed] or a task's table."""
    lab = {"data": "lab", "lora_alpha": 16} if model == "lab" else {}
    parts: dict[str, list[str]] = {"scientific": [], "nuisance": [], "fixed": []}
    for key, value in {"model": model, "task": task, **SMALL, **lab, **settings}.items():
        if key in _NUISANCE:
            part = "nuisance"
        elif key in ("model", "task", *_SCIENTIFIC) or _is_compared(key, value):
            part = "scientific"
        else:
            part = "fixed"
        if value is not None:
            parts[part].append(f"{key} = {json.dumps(value, default=str)}")
    tables = [f"[{part}]\n" + "\n".join(lines) for part, lines in parts.items()]
    return "\n".join(['name = "t"', *tables, own, ""])


def _is_compared(key: str, value: Any) -> bool:
    """Whether it is a list of values; one of ``target_modules`` is a list itself."""
    if key == "target_modules":
        return isinstance(value[0], list)
    return key in _LISTS and isinstance(value, list)
