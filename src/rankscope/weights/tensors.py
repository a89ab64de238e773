"""Named tensors on disk: what a file holds is known at once, each tensor is read when it is asked for.

Nothing in a file is ever executed: safetensors is plain data, and a torch file goes through
``weights_only=True``.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
READABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True)
class Header:
    """What is known of a tensor before it is read. ``dtype`` is None where torch has no such type."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Tensors:
    """The named tensors of one or many files. ``where`` names them in messages.

    ``metadata`` is the free text that a safetensors file carries in its header.
    """

    where: str
    headers: Mapping[str, Header]
    readers: Mapping[str, Callable[[], Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, tuple[Path, int, int]] = field(default_factory=dict)  # file, first byte, bytes

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __contains__(self, name: object) -> bool:
        return name in self.headers

    def layer_of(self, name: str) -> str:
        """The layer's name: the tensor's less ".weight", or the whole where another tensor has that name."""
        plain = name.removesuffix(".weight")
        return name if plain in self.headers else plain

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, in the dtype of the file."""
        return self.readers[name]()

    def prefetch(self, name: str) -> None:
        """Lets the system read the tensor's bytes from the disk while others are measured; no memory of ours."""
        if name in self.places and hasattr(os, "posix_fadvise"):
            path, start, length = self.places[name]
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)


def open_tensors(path: Path) -> Tensors:
    """A ``.safetensors`` file, or any other file as a dictionary of tensors written by ``torch.save``.

    Raises ``ValueError``, one line, for a file that is cut short, malformed, or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_torch(path)


def finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or Inf. Their sum tells, at a third of the cost; if it overflows, each is looked at."""
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def in_memory(where: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """A state dictionary, seen as if it were a file."""
    headers = {name: Header(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return Tensors(where, headers, {name: _constant(tensor) for name, tensor in tensors.items()})


def _constant(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _open_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            headers = {
                name: Header(tuple(part.get_shape()), DTYPES.get(part.get_dtype()))
                for name, part in slices.items()
            }
            metadata = file.metadata() or {}
        places = _places(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a complete safetensors file; found {one_line(error)}. "
            "Download or save the file again."
        ) from error
    readers = {name: _from_safetensors(path, name) for name in headers}
    return Tensors(str(path), headers, readers, metadata, places)


def _places(path: Path) -> dict[str, tuple[Path, int, int]]:
    """Where in the file each tensor stands. The file was opened before, so its header is sound but for one thing:
    of two tensors of one name safetensors keeps the last, without a word; here they are refused."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size), object_pairs_hook=once)
    header.pop("__metadata__", None)
    offsets = {name: part["data_offsets"] for name, part in header.items()}
    return {name: (path, 8 + size + start, end - start) for name, (start, end) in offsets.items()}


def _from_safetensors(path: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        # Opened anew for each tensor, so that no shard stays mapped after its tensors have been measured.
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: {name} can't be read: {one_line(error)}.") from error

    return read


def _open_torch(path: Path) -> Tensors:
    _refuse_inflated(path)
    try:
        with (
            warnings.catch_warnings()
        ):  # of old pickle protocols and storages, which are no concern of the reader
            warnings.simplefilter("ignore")
            # Only the zip format of torch >= 1.6 can be mapped into memory instead of being read at once.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        found = f"pickled code ({code[1]})" if code else "something else, perhaps pickled code"
        raise ValueError(
            f"{path}: expected tensors only, written by torch.save; found {found}. Nothing of it was "
            "executed. Ask its author for safetensors, or save a plain state_dict."
        ) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(
            f"{path}: expected a complete file written by torch.save; found {one_line(error)}. "
            "Download or save the file again."
        ) from error
    return in_memory(str(path), _state_dict(path, loaded))


def _refuse_inflated(path: Path) -> None:
    """torch stores its archives uncompressed; in one that isn't, a kilobyte may stand for a terabyte."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # the old format, or broken: torch.load says so
    if size > path.stat().st_size:
        raise ValueError(
            f"{path}: expected an archive as torch.save writes it; found one that unpacks to {size} bytes."
        )


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The dictionary of tensors, also where a trainer wrapped it in another one."""
    if isinstance(loaded, Mapping):
        for wrapper in WRAPPERS:
            inner = loaded.get(wrapper)
            if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
                loaded = inner
                break
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
        for name, tensor in tensors.items():
            if (why := _unstored(tensor)) is not None:
                raise ValueError(f"{path}: expected every tensor stored in full; found {name} {why}.")
        if tensors:
            return tensors
    raise ValueError(
        f"{path}: expected a dictionary of named tensors; found {type(loaded).__name__} without any. "
        "Save model.state_dict()."
    )


def _unstored(tensor: Tensor) -> str | None:
    """How a tensor differs from numbers in a file; None where it doesn't.

    A view with stride 0 claims a terabyte in a file of a kilobyte.
    """
    if tensor.is_quantized or tensor.layout != torch.strided:
        return f"as {'quantized' if tensor.is_quantized else tensor.layout}"
    if tensor.is_meta:
        return "without its numbers (device meta)"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {tuple(tensor.shape)} over {tensor.untyped_storage().nbytes()} bytes"
    return None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different: of twins, readers take now the first, now the last."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the name {max(names, key=names.count)!r} twice")
    return dict(pairs)


def one_line(error: Exception) -> str:
    """The start of an error's message, without line ends."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
