"""Any update as people have it -> matrices to measure: finds out what a path or hub id is, and reads it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from rankscope.weights.base_model import BaseModel, open_base_model
from rankscope.weights.checkpoints import FILES, INDEXES, open_file, open_place
from rankscope.weights.difference import checkpoint_matrices
from rankscope.weights.hub import Place, place
from rankscope.weights.kohya import is_kohya, kohya_matrices
from rankscope.weights.loralib import is_loralib, loralib_matrices
from rankscope.weights.matrix import Reading
from rankscope.weights.peft_files import CONFIG, find_adapter, peft_matrices
from rankscope.weights.tensors import Tensors

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def read(
    source: str | Path,
    *,
    base: str | Path | None = None,
    layers: re.Pattern[str] | None = None,
    alpha: float | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
) -> Reading:
    """The matrices of an adapter or a full checkpoint, one layer at a time.

    Every tensor of ``source`` belongs to a Matrix or to a Skipped. ``alpha`` is for loralib files, which
    carry none; ``subfolder`` and ``revision`` say where in ``source``. Without ``base_revision`` the base is
    taken as the adapter's own configuration says. Raises ``ValueError``, one line, where ``source`` or
    ``base`` is missing, malformed or no low-rank update.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.parent.joinpath(CONFIG).is_file() and path.name.startswith("adapter_"):
        path, source = path.parent, str(path.parent)
    if path.is_file():
        pretrained = None if base is None else open_base_model(base, revision=base_revision)
        return _tensors(open_file(path), pretrained, layers, alpha)
    where = place(source, revision=revision, subfolder=subfolder)
    stored = find_adapter(where)
    if base is None:
        pretrained = None
    else:
        meant = None if stored is None or Path(base).is_dir() else stored.revision_of(base)
        pretrained = open_base_model(base, revision=base_revision or meant)
    if stored is not None:
        return peft_matrices(stored, str(source), pretrained, layers)
    if (tensors := open_place(where)) is not None:
        return _tensors(tensors, pretrained, layers, alpha)
    raise ValueError(
        f"{source}: expected an adapter ({CONFIG}) or a checkpoint ({', '.join((*FILES, *INDEXES[:1]))}); "
        f"found {where.names()}.{_inside(where)}"
    )


def _tensors(
    tensors: Tensors, base: BaseModel | None, layers: re.Pattern[str] | None, alpha: float | None
) -> Reading:
    if is_loralib(tensors):
        return loralib_matrices(tensors, base, layers, alpha=alpha)
    if is_kohya(tensors):
        return kohya_matrices(tensors, base, layers)
    if any(".lora_A." in name for name in tensors):
        raise ValueError(
            f"{tensors.where}: expected {CONFIG} beside these LoRA factors, with their scale; found none."
        )
    return checkpoint_matrices(tensors, base, layers)


def _inside(where: Place) -> str:
    """What else to name: one of several adapters in the folder, or its one file of tensors."""
    folders = where.folders_with(CONFIG)
    if folders:
        return f" Name one of its adapters: --subfolder {shlex.quote(folders[0])}"
    files = [] if where.folder is None else sorted(p for p in where.folder.iterdir() if p.suffix in SUFFIXES)
    return f" Name its file: {shlex.quote(str(files[0]))}" if len(files) == 1 else ""
