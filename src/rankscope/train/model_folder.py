"""A model's configuration, looked at before transformers acts on it. It comes from others: sizes
are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

CONFIG, ADAPTER = "config.json", "adapter_config.json"
LARGEST_FILE = 2**24  # bytes of a config.json: real ones have thousands
MOST_PARTS = 10_000  # layers, heads, experts ...: transformers builds them one by one
LARGEST_NUMBER = 2**31


def check_folder(model: str) -> None:
    """``ValueError`` or ``OSError`` for a folder or hub id whose configuration can't be a base
    model's."""
    folder = Path(model)
    if not folder.is_dir():
        check_config(Path(hf_hub_download(model, CONFIG)))
        return
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"found an adapter in it ({ADAPTER}): name the model that it was trained on, or "
            "merge it first"
        )
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"found no {CONFIG} in it")
    check_config(folder / CONFIG)


def check_config(path: Path) -> None:
    """A JSON object with a model_type, and with no size that could not be built."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: expected a configuration; found {path.stat().st_size} bytes")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON; {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object; found {type(config).__name__}")
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"{path}: expected a model_type; found {config.get('model_type')!r}")
    for key, number in _whole_numbers(config):
        if abs(number) > LARGEST_NUMBER or (abs(number) > MOST_PARTS and _counts_parts(key)):
            raise ValueError(
                f"{path}: expected sizes of a model; found {key[:40]} = {str(number)[:40]}"
            )


def _counts_parts(key: str) -> bool:
    return (
        any(word in key for word in ("layer", "block", "head", "expert", "group"))
        and "dim" not in key
    )


def _whole_numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in it, with its name. Without recursion: the depth comes from others,
    too."""
    left = [(key, value)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(key, inner) for inner in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value
