"""A checkpoint of a pack in training: one safetensors file with the tensors, and everything else as
JSON in its header. No pickle.

It holds weights, optimiser moments, best copies, random streams, spectra and logs, so a resumed
pack continues exactly as an uninterrupted one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

NAME = "checkpoint.safetensors"
FORMAT = "3"  # of the checkpoint; a pack starts anew rather than read another format


def write(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Replaces the folder's checkpoint. If the process is killed, the old or the new one is
    left, complete."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{NAME}.{os.getpid()}"
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
        draft,
        metadata={"state": json.dumps(state), "format": FORMAT},
    )
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(folder / NAME)


def read(folder: Path, *, trials: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The folder's checkpoint of these trials (ids, in this order), or None: absent,
    damaged, of another pack or of another version, or replaced while it was read.

    ``safe_open`` opens a file twice, for its header and for its tensors. A worker that was taken
    for dead may write in between, and its tensors would go with another header.
    """
    path = folder / NAME
    try:
        before = _version(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = json.loads(header.get("state", "{}"))
            if state.get("trials") != trials or header.get("format") != FORMAT:
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        return (tensors, state) if _version(path) == before else None
    except (FileNotFoundError, SafetensorError, json.JSONDecodeError):
        return None
    except RuntimeError:  # the second file is shorter than the first one's header says
        if _version(path) == before:
            raise
        return None


def _version(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
