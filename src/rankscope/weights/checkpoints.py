"""Full checkpoints: one file or many shards, safetensors or torch, opened without building a
model."""

from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath
from typing import Any

from rankscope.weights.hub import Place
from rankscope.weights.limits import JSON_BYTES
from rankscope.weights.tensor_files import open_tensors
from rankscope.weights.tensors import Tensors, check_names, once, one_line, without_wrappers

FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "lit_model.pth.lora",
    "lit_model.pth",
)
# The models of a diffusers pipeline, each in a folder of its name: together they are
# the base of one LoRA file.
PIPELINE = ("unet", "transformer", "prior", "text_encoder", "text_encoder_2", "text_encoder_3")
INDEXES = tuple(f"{name}.index.json" for name in FILES)


def open_checkpoint(where: Place) -> Tensors:
    """The tensors of a checkpoint in a folder as ``save_pretrained`` writes it, or in a repository.

    Raises ``ValueError``, one line, if files are missing, truncated or malformed.
    """
    found = open_place(where)
    if found is None:
        raise ValueError(
            f"{where.source}: expected a checkpoint ({', '.join(FILES)} or its index); found "
            f"{where.names()}."
        )
    return found


def open_file(path: Path) -> Tensors:
    """One file of tensors, or the index of a sharded checkpoint."""
    if path.suffix == ".json":
        return _open_index(Place(str(path), path.parent), path)
    return without_wrappers(open_tensors(path))


def open_place(where: Place) -> Tensors | None:
    """The checkpoint in a folder or repository, or all of a diffusers pipeline; None if there is
    none."""
    return _open_one(where) or _open_pipeline(where)


def _open_one(where: Place) -> Tensors | None:
    for file, index in zip(FILES, INDEXES, strict=True):
        # The single file first: Transformers prefers it as well if a folder holds both.
        if (path := where.find(file)) is not None:
            return without_wrappers(open_tensors(path))
        if (path := where.find(index)) is not None:
            return _open_index(where, path)
    return None


def _open_pipeline(where: Place) -> Tensors | None:
    """The models of a diffusers pipeline; each tensor's name is prefixed with its model's."""
    if where.find("model_index.json") is None:
        return None
    found = {
        part: tensors for part in PIPELINE if (tensors := _open_one(where.below(part))) is not None
    }
    if not found:
        return None
    headers = {f"{part}.{name}": ts.headers[name] for part, ts in found.items() for name in ts}
    readers = {f"{part}.{name}": ts.readers[name] for part, ts in found.items() for name in ts}
    return Tensors(where.source, headers, readers)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. ``ValueError``, one line, for anything else."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path}: expected at most {JSON_BYTES} bytes of JSON; found {size}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON; found {one_line(error)}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object; found {type(content).__name__}.")
    return content


def _open_index(where: Place, index: Path) -> Tensors:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: expected a weight_map from tensor names to files; found none.")
    check_names(index, weight_map)
    files = dict.fromkeys(_shard_name(index, file) for file in weight_map.values())
    shards = {file: _open_shard(where, index, file) for file in files}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise ValueError(f"{index}: expected {name} in {file}; found no such tensor there.")
    tensors = Tensors(
        where.source,
        {name: shards[file].headers[name] for name, file in weight_map.items()},
        {name: shards[file].readers[name] for name, file in weight_map.items()},
        places={
            n: shards[file].places[n] for n, file in weight_map.items() if n in shards[file].places
        },
    )
    return without_wrappers(tensors)


def _shard_name(index: Path, file: object) -> str:
    """The name of a file beside its index; a path that leads anywhere else is refused."""
    if (
        not isinstance(file, str)
        or file in ("", ".", "..")
        or PureWindowsPath(file).name != file  # knows both kinds of slash, and drives
    ):
        raise ValueError(
            f"{index}: expected file names beside the index; found {file!r:.80}. Nothing was read."
        )
    return file


def _open_shard(where: Place, index: Path, file: str) -> Tensors:
    path = where.find(file)
    if path is None:
        raise ValueError(
            f"{where.source}: {index.name} names the shard {file}, which is missing. Download it."
        )
    return open_tensors(path)
